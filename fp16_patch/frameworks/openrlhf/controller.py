# SPDX-License-Identifier: Apache-2.0
"""Patches of OpenRLHF's training loop: proof before the first update, no weight sync without one.

They run in the PPO trainer's Ray actor, the single controller; those of the trainer itself are patched in the driver
and shipped with its class. Each stops the run by raising there.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from fp16_patch.frameworks.openrlhf import collect, metrics, releases
from fp16_patch.frameworks.ray import nodes
from fp16_patch.patching import Patch, status
from fp16_patch.precision import Precision, long_name
from fp16_patch.proof import report
from fp16_patch.proof.processes import require, this_process

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, never imported here

_REPORTED = "_fp16_patch_reported"  # on the controller: how far the precision report has come
_UPDATED = "_fp16_patch_updated"  # on the controller: whether the last ppo_train has changed weights


def check_processes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Nodes and ledgers, before anything is sampled. Shipped with the class: it runs where nothing else would."""

    @functools.wraps(original)
    def fit(self: Controller, *args: Any, **kwargs: Any) -> Any:
        nodes.check_every_node()
        gather(self)
        return original(self, *args, **kwargs)

    return fit


def report_before_first_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """The precision report, after the first log-probs were computed; and whether the updates have changed weights."""

    @functools.wraps(original)
    def ppo_train(self: Controller, global_steps: int) -> dict[str, Any]:
        if not hasattr(self, _REPORTED):
            publish(self, when="before the first update")
            setattr(self, _REPORTED, "before")
        status: dict[str, Any] = original(self, global_steps)
        setattr(self, _UPDATED, status.get("actor/update_skipped") != 1)
        return status

    return ppo_train


def sync_after_updates_only(original: Callable[..., Any]) -> Callable[..., Any]:
    """The rollout has these weights already when every update of a step was skipped."""

    @functools.wraps(original)
    def broadcast_to_vllm(self: Controller) -> Any:
        changed = getattr(self, _UPDATED, True)
        setattr(self, _UPDATED, True)
        return original(self) if changed else None

    return broadcast_to_vllm


def complete_report(original: Callable[..., Any]) -> Callable[..., Any]:
    """Complete the saved report after the first step with what exists only now: optimizer state, what travelled."""

    @functools.wraps(original)
    def train_step(self: Controller, rollout_samples: Any, global_step: int) -> Any:
        result = original(self, rollout_samples, global_step)
        if getattr(self, _REPORTED, None) == "before":
            publish(self, when="after the first update")
            setattr(self, _REPORTED, "after")
        return result

    return train_step


def gather(controller: Controller) -> list[dict[str, Any]]:
    """Every process's report, or an :class:`Fp16PatchError` naming those that are missing or unproven."""
    from fp16_patch.frameworks.openrlhf.plan import REQUIRED

    shipped = (*PATCHES, *metrics.TRAINER_PATCHES)
    roles = {
        "actor": controller.actor_model_group,
        "reference": controller.reference_model_group,
        "critic": controller.critic_model_group,
        "reward": controller.reward_model_group,
    }
    reports = {
        "controller": [this_process("controller", collect.with_shipped(status(), type(controller), shipped), {})],
        **collect.from_trainers(roles),
        **collect.from_rollout(controller.vllm_engines, controller.args.vllm.tensor_parallel_size),
    }
    require(reports, REQUIRED)
    return [report for some in reports.values() for report in some]


def publish(controller: Controller, when: str) -> None:
    """Gather, check against the flag, print (first time) and save."""
    from fp16_patch.frameworks.openrlhf.start import RUN_VARIABLE

    record = json.loads(os.environ[RUN_VARIABLE])
    driver = {"process": "driver", **record["driver"], "ledger": [], "roles": {}}
    reports = [driver, *gather(controller)]
    precision = Precision.in_force()
    report.publish(precision, reports, record["changes"], record["report_path"], when, _deepspeeds_own(precision))


def _deepspeeds_own(precision: Precision) -> Mapping[str, tuple[str, ...]]:
    """DeepSpeed sends gradients between ranks in the train dtype, and in BF16 adds them up in it too."""
    half = (long_name(precision.train),)
    return {"gradient_reduction": half} | ({"gradient_accumulation": half} if precision.train == "bf16" else {})


def _patch(name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=f"openrlhf-{name}",
        target=target,
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="controller",
        kind="wrap",
        **kwargs,
    )


# Not the base class, where most of these are defined: Ray has copied its methods into the class that it ships.
_LOOP = "openrlhf.trainer.ppo_trainer:PPOTrainer"

PATCHES: tuple[Patch, ...] = (
    _patch(
        "check-processes",
        f"{_LOOP}.fit",
        make=check_processes,
        parameters=("self",),
        reason="every hook that brings us into a process can fail silently, so a missing ledger stops the run",
        upstream="none: our own proof",
        remove_when="never",
    ),
    _patch(
        "precision-report",
        f"{_LOOP}.ppo_train",
        make=report_before_first_update,
        parameters=("self", "global_steps"),
        reason="prints and saves the dtypes in force once, before the first update",
        upstream="none: our own proof",
        remove_when="never",
    ),
    _patch(
        "sync-after-updates-only",
        f"{_LOOP}.broadcast_to_vllm",
        make=sync_after_updates_only,
        parameters=("self",),
        reason="OpenRLHF sends all weights after a skipped update too, although none has changed",
        upstream="OpenRLHF trainer/ppo_trainer.py:247",
        remove_when="OpenRLHF skips the sync when nothing was updated",
    ),
    _patch(
        "precision-report-complete",
        f"{_LOOP}.train_step",
        make=complete_report,
        parameters=("self", "rollout_samples", "global_step"),
        reason="optimizer state and weights on the wire exist only after the first step; completes the saved report",
        upstream="none: our own proof",
        remove_when="never",
    ),
)
