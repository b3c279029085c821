# SPDX-License-Identifier: Apache-2.0
"""Patch OpenRLHF's training loop: report the precision before the first update, and sync weights only after updates.

The patches run in the PPO trainer's Ray actor, the single controller. The driver patches the trainer's class and Ray
ships it. Each patch stops the run by raising there. The async trainer runs the same steps in another class,
``TrainingActor``. Most of the steps are methods of a base class, but Ray has copied them into the class it ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fp16_patch.attached_state import attached
from fp16_patch.engines.ray import node_check
from fp16_patch.frameworks.openrlhf.releases import RELEASE
from fp16_patch.frameworks.openrlhf.reports import gather, publish
from fp16_patch.patching import ProcessKind, hook, wrap

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here

_TRAINER = "openrlhf.trainer.ppo_trainer:PPOTrainer"
_ASYNC_TRAINER = "openrlhf.trainer.ppo_trainer_async:TrainingActor"
_SYNC: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.CONTROLLER}, "shipped": True}
_ASYNC: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.ASYNC_CONTROLLER}, "shipped": True}

_REPORT = "prints and saves the dtypes in force once, before the first update"
_COMPLETE = "completes the saved report: optimizer state and synced weights exist only after the first step"
_SKIPPED: dict[str, Any] = {
    "reason": "OpenRLHF sends all weights after a skipped update too, although none has changed",
    "upstream": "OpenRLHF trainer/ppo_trainer.py:247",
    "remove_when": "OpenRLHF skips the sync when nothing was updated",
}

_UPDATED = "_fp16_patch_updated"
"""On the controller: whether the last ppo_train has changed weights. Not attached state: see below."""


@dataclass
class _Report:
    """Hold how far the precision report of a controller has come."""

    stage: Literal["none", "before", "after"] = "none"


@hook(
    f"{_TRAINER}.fit",
    name="openrlhf-check-processes",
    reason="every hook that loads this package in a process can fail silently, so a missing ledger stops the run",
    **_SYNC,
)
def check_processes(original: Any, self: Controller, *args: Any, **kwargs: Any) -> Any:
    """Check nodes and ledgers before anything is sampled. Runs in every case, because it comes with the class."""
    node_check.check_every_node()
    gather(self)
    return original(self, *args, **kwargs)


@hook(f"{_ASYNC_TRAINER}.ppo_train", name="openrlhf-async-precision-report", reason=_REPORT, **_ASYNC)
@hook(f"{_TRAINER}.ppo_train", name="openrlhf-precision-report", reason=_REPORT, **_SYNC)
def report_before_first_update(original: Any, self: Controller, global_steps: int) -> Any:
    """Publish the precision report after the first log-probs. Remember whether the updates have changed weights."""
    report = attached(self, _Report)
    if report.stage == "none":
        publish(self, when="before the first update")
        report.stage = "before"
    status = original(self, global_steps)
    setattr(self, _UPDATED, status.get("actor/update_skipped") != 1)
    return status


@wrap(f"{_ASYNC_TRAINER}.broadcast_to_vllm", name="openrlhf-async-sync-after-updates-only", **_SKIPPED, **_ASYNC)
@wrap(f"{_TRAINER}.broadcast_to_vllm", name="openrlhf-sync-after-updates-only", **_SKIPPED, **_SYNC)
def sync_after_updates_only(original: Any, self: Controller) -> Any:
    """Sync no weights if every update of the step was skipped: the rollout has these weights already."""
    # Uses nothing of this package, so that Ray can ship it to where the package is not installed.
    changed = getattr(self, _UPDATED, True)
    setattr(self, _UPDATED, True)
    return original(self) if changed else None


@hook(f"{_ASYNC_TRAINER}.train_step", name="openrlhf-async-precision-report-complete", reason=_COMPLETE, **_ASYNC)
@hook(f"{_TRAINER}.train_step", name="openrlhf-precision-report-complete", reason=_COMPLETE, **_SYNC)
def complete_report(original: Any, self: Controller, rollout_samples: Any, global_step: int) -> Any:
    """Complete the saved report after the first step with optimizer state and the dtypes of the weight sync."""
    result = original(self, rollout_samples, global_step)
    report = attached(self, _Report)
    if report.stage == "before":
        publish(self, when="after the first update")
        report.stage = "after"
    return result
