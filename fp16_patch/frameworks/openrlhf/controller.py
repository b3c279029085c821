# SPDX-License-Identifier: Apache-2.0
"""Patches of OpenRLHF's training loop: proof before the first update, no weight sync without one.

They run in the PPO trainer's Ray actor, the single controller; those of the trainer itself are patched in the driver
and shipped with its class. Each stops the run by raising there. The async trainer runs the same steps in a class of
its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.ray import node_check
from fp16_patch.frameworks.openrlhf import releases
from fp16_patch.frameworks.openrlhf.reporting import gather, publish
from fp16_patch.patching import Patch

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here

_REPORTED = "_fp16_patch_reported"  # on the controller: how far the precision report has come
_UPDATED = "_fp16_patch_updated"  # on the controller: whether the last ppo_train has changed weights


def check_processes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Nodes and ledgers, before anything is sampled. Shipped with the class: it runs where nothing else would."""

    @functools.wraps(original)
    def fit(self: Controller, *args: Any, **kwargs: Any) -> Any:
        node_check.check_every_node()
        gather(self)
        return original(self, *args, **kwargs)

    return fit


def report_before_first_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Print the precision report after the first log-probs, and note whether the updates have changed weights."""

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
    """Skip the weight sync when every update of a step was skipped: the rollout has these weights already."""

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


def _patch(process: str, name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=f"openrlhf-{name}",
        target=target,
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process=process,
        kind="wrap",
        **kwargs,
    )


def _steps(process: str, prefix: str, loop: str) -> tuple[Patch, ...]:
    """Not of the base class, where most of these are defined: Ray has copied its methods into the class it ships."""
    return (
        _patch(
            process,
            f"{prefix}precision-report",
            f"{loop}.ppo_train",
            make=report_before_first_update,
            parameters=("self", "global_steps"),
            reason="prints and saves the dtypes in force once, before the first update",
            upstream="none: our own proof",
            remove_when="never",
        ),
        _patch(
            process,
            f"{prefix}sync-after-updates-only",
            f"{loop}.broadcast_to_vllm",
            make=sync_after_updates_only,
            parameters=("self",),
            reason="OpenRLHF sends all weights after a skipped update too, although none has changed",
            upstream="OpenRLHF trainer/ppo_trainer.py:247",
            remove_when="OpenRLHF skips the sync when nothing was updated",
        ),
        _patch(
            process,
            f"{prefix}precision-report-complete",
            f"{loop}.train_step",
            make=complete_report,
            parameters=("self", "rollout_samples", "global_step"),
            reason="optimizer state and weights on the wire exist only after the first step; completes the saved "
            "report",
            upstream="none: our own proof",
            remove_when="never",
        ),
    )


PATCHES: tuple[Patch, ...] = (
    _patch(
        "controller",
        "check-processes",
        "openrlhf.trainer.ppo_trainer:PPOTrainer.fit",
        make=check_processes,
        parameters=("self",),
        reason="every hook that brings us into a process can fail silently, so a missing ledger stops the run",
        upstream="none: our own proof",
        remove_when="never",
    ),
    *_steps("controller", "", "openrlhf.trainer.ppo_trainer:PPOTrainer"),
)

ASYNC_PATCHES = _steps("async controller", "async-", "openrlhf.trainer.ppo_trainer_async:TrainingActor")
"""Its processes are checked by whoever starts it and the sampler: ``coordinator``."""
