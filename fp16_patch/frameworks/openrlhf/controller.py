# SPDX-License-Identifier: Apache-2.0
"""Patches of OpenRLHF's training loop: proof before the first update, mismatch metrics, no sync without an update.

They run in the PPO trainer's Ray actor, the single controller; those of the trainer itself are patched in the driver
and shipped with its class. Each stops the run by raising there.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from fp16_patch.frameworks.openrlhf import collect, releases
from fp16_patch.frameworks.ray import nodes
from fp16_patch.patching import Patch, status
from fp16_patch.precision import Precision, long_name
from fp16_patch.proof import report
from fp16_patch.proof.processes import require, this_process

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, never imported here

METRICS_VARIABLE = "FP16_PATCH_METRICS"
"""A file that gets one line of JSON a step: ``{"step": 1, "data": {...}}``, as verl's file logger writes them."""
_REPORTED = "_fp16_patch_reported"  # on the controller: how far the precision report has come
_MISMATCH = "_fp16_patch_mismatch"  # on the experience maker: metrics of the batch it has just made
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


def publish_metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    """Mismatch metrics into OpenRLHF\'s own stream.

    After the first step the precision report is completed with what exists only now: optimizer state, what travelled.
    """

    @functools.wraps(original)
    def train_step(self: Controller, rollout_samples: Any, global_step: int) -> Any:
        status, step = original(self, rollout_samples, global_step)
        if getattr(self, _REPORTED, None) == "before":
            publish(self, when="after the first update")
            setattr(self, _REPORTED, "after")
        status |= getattr(self.experience_maker, _MISMATCH, {})
        return status, step

    return train_step


def write_metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    """All of a step into a file where one is asked for. OpenRLHF adds the step's times after ``train_step``."""

    @functools.wraps(original)
    def save_logs_and_checkpoints(
        self: Controller, global_step: int, logs_dict: dict[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if path := os.environ.get(METRICS_VARIABLE):
            with open(path, "a") as file:
                file.write(json.dumps({"step": global_step, "data": _plain(logs_dict or {})}) + "\n")
        return original(self, global_step, logs_dict, *args, **kwargs)

    return save_logs_and_checkpoints


def measure_mismatch(original: Callable[..., Any]) -> Callable[..., Any]:
    """Compare the rollout's log-probs with the trainer's on the batch just made."""

    @functools.wraps(original)
    def make_experience_batch(self: Any, rollout_samples: Any) -> Any:
        import torch

        from fp16_patch.mismatch.metrics import mismatch_metrics

        experiences = original(self, rollout_samples)
        measured = [e for e in experiences if e.rollout_log_probs is not None and e.action_log_probs is not None]
        found: dict[str, float] = {}
        if measured:
            flat = [
                torch.cat([getattr(e, name).reshape(-1).cpu() for e in measured])
                for name in ("rollout_log_probs", "action_log_probs", "action_mask")
            ]
            found = {f"mismatch/{name}": value for name, value in mismatch_metrics(*flat).items()}
        setattr(self, _MISMATCH, found)
        return experiences

    return make_experience_batch


def gather(controller: Controller) -> list[dict[str, Any]]:
    """Every process's report, or an :class:`Fp16PatchError` naming those that are missing or unproven."""
    from fp16_patch.frameworks.openrlhf.plan import REQUIRED

    roles = {
        "actor": controller.actor_model_group,
        "reference": controller.reference_model_group,
        "critic": controller.critic_model_group,
        "reward": controller.reward_model_group,
    }
    reports = {
        "controller": [this_process("controller", collect.with_shipped(status(), type(controller), PATCHES), {})],
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


def _plain(status: dict[str, Any]) -> dict[str, float]:
    numbers = {name: getattr(value, "item", lambda value=value: value)() for name, value in status.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}


def _patch(name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=name,
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
        "mismatch-metrics",
        f"{_LOOP}.train_step",
        make=publish_metrics,
        parameters=("self", "rollout_samples", "global_step"),
        reason="OpenRLHF's vllm_kl is a signed mean in which differences cancel; adds what verl's runs report too. And "
        "completes the precision report after the first step",
        upstream="none: our own metrics",
        remove_when="never",
    ),
    _patch(
        "metrics-file",
        f"{_LOOP}.save_logs_and_checkpoints",
        make=write_metrics,
        parameters=("self", "global_step", "logs_dict"),
        reason="OpenRLHF keeps its metrics in TensorBoard or wandb files; a comparison reads one line of JSON a step",
        upstream="none: our own metrics",
        remove_when="OpenRLHF can write its metrics as JSON",
    ),
)

EXPERIENCE_PATCHES: tuple[Patch, ...] = (
    _patch(
        "measure-mismatch",
        "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker.make_experience_batch",
        make=measure_mismatch,
        parameters=("self", "rollout_samples"),
        reason="the one place where both engines' log-probs of a whole batch lie together",
        upstream="none: our own metrics",
        remove_when="never",
    ),
)
