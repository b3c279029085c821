# SPDX-License-Identifier: Apache-2.0
"""Patch OpenRLHF's training loop: check processes, report the precision, and sync weights only after updates.

The patches run in the PPO trainer's Ray actor, the single controller. The driver patches the trainer's class and Ray
ships it. Each patch stops the run by raising there. With the async trainer a coordinator starts the controller
(``TrainingActor``) and a sampler. Both are then one long call and cannot answer, so the coordinator checks them before.
Most methods are those of a base class, but Ray has copied them into the class that it ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fp16_patch.attached_state import attached
from fp16_patch.engines.ray import node_check
from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.frameworks.openrlhf import reports
from fp16_patch.frameworks.openrlhf.releases import ASYNC_CONTROLLER, ASYNC_TRAINER, CONTROLLER, RELEASE, TRAINER
from fp16_patch.patching import ProcessKind, hook, wrap

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here
Coordinator = Any  # openrlhf.trainer.ppo_trainer_async.PPOTrainerAsync, never imported here

_CHECK = "every hook that loads this package in a process can fail silently, so a missing ledger stops the run"
_REPORT = "prints and saves the dtypes in force once, before the first update"
_COMPLETE = "completes the saved report: optimizer state and synced weights exist only after the first step"
_SKIPPED: dict[str, Any] = {
    "reason": "OpenRLHF sends all weights after a skipped update too, although none has changed",
    "upstream": "OpenRLHF trainer/ppo_trainer.py:247",
    "remove_when": "OpenRLHF skips the sync when nothing was updated",
}

# A plain attribute of the controller, not attached state: sync_after_updates_only uses nothing of this package, so that
# Ray can ship it by value to a process without the package (docs/patching.md).
_UPDATED = "_fp16_patch_updated"
"""Whether the last ppo_train has changed weights."""


@dataclass
class _Report:
    """Hold which precision report a controller has published last."""

    stage: Literal["none", "before", "after"] = "none"


@hook(
    "openrlhf.trainer.ppo_trainer_async:PPOTrainerAsync.fit",
    name="openrlhf-async-check-processes",
    release=RELEASE,
    processes={ProcessKind.COORDINATOR},
    shipped=True,
    reason=f"{_CHECK}; the sampler cannot answer once it runs",
)
def check_async_processes(original: Any, self: Coordinator, *args: Any, **kwargs: Any) -> Any:
    """Check nodes and ledgers before anything is sampled. The controller keeps the reports of the other two."""
    import ray

    node_check.check_nodes_in_use()
    coordinator = reports.shipped_class_report(ProcessKind.COORDINATOR, type(self))
    sampler = answers({"sampler": self.generator_actor.__ray_call__.remote(reports.sampler_report)})
    extra_reports = {"coordinator": [coordinator], "sampler": list(sampler.values())}
    ray.get(self.trainer_actor.__ray_call__.remote(reports.keep_and_publish, extra_reports))
    return original(self, *args, **kwargs)


@hook(f"{TRAINER}.fit", name="openrlhf-check-processes", reason=_CHECK, **CONTROLLER)
def check_processes(original: Any, self: Controller, *args: Any, **kwargs: Any) -> Any:
    """Check nodes and ledgers before anything is sampled. This always runs, because it comes with the class.

    Save a precision report: a run that has no step has no update to report at. Later reports complete it.
    """
    node_check.check_nodes_in_use()
    reports.publish(self, when="before training")
    return original(self, *args, **kwargs)


@hook(f"{ASYNC_TRAINER}.ppo_train", name="openrlhf-async-precision-report", reason=_REPORT, **ASYNC_CONTROLLER)
@hook(f"{TRAINER}.ppo_train", name="openrlhf-precision-report", reason=_REPORT, **CONTROLLER)
def report_before_first_update(original: Any, self: Controller, global_steps: int) -> Any:
    """Publish the precision report after the first log-probs. Remember whether the updates have changed weights."""
    report = attached(self, _Report)
    if report.stage == "none":
        reports.publish(self, when="before the first update")
        report.stage = "before"
    status = original(self, global_steps)
    setattr(self, _UPDATED, status.get("actor/update_skipped") != 1)
    return status


@wrap(
    f"{ASYNC_TRAINER}.broadcast_to_vllm", name="openrlhf-async-sync-after-updates-only", **_SKIPPED, **ASYNC_CONTROLLER
)
@wrap(f"{TRAINER}.broadcast_to_vllm", name="openrlhf-sync-after-updates-only", **_SKIPPED, **CONTROLLER)
def sync_after_updates_only(original: Any, self: Controller) -> Any:
    """Sync no weights if every update of the step was skipped: the rollout has these weights already."""
    changed = getattr(self, _UPDATED, True)
    setattr(self, _UPDATED, True)
    return original(self) if changed else None


@hook(
    f"{ASYNC_TRAINER}.train_step", name="openrlhf-async-precision-report-complete", reason=_COMPLETE, **ASYNC_CONTROLLER
)
@hook(f"{TRAINER}.train_step", name="openrlhf-precision-report-complete", reason=_COMPLETE, **CONTROLLER)
def complete_report(original: Any, self: Controller, rollout_samples: Any, global_step: int) -> Any:
    """Complete the saved report after the first step with optimizer state and the dtypes of the weight sync."""
    result = original(self, rollout_samples, global_step)
    report = attached(self, _Report)
    if report.stage == "before":
        reports.publish(self, when="after the first update")
        report.stage = "after"
    return result
