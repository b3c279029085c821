# SPDX-License-Identifier: Apache-2.0
"""Patches that measure the mismatch of both engines, and write whole steps into a file where one is asked for.

They run in the PPO trainer's Ray actor (see ``controller``).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any

from fp16_patch import envs
from fp16_patch.frameworks.openrlhf import releases
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision, reports_folder

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here

_BOTH = ("rollout_log_probs", "action_log_probs", "action_mask")
_MISMATCH = "_fp16_patch_mismatch"  # on the experience maker: metrics of the batch it has just made


def measure_mismatch(original: Callable[..., Any]) -> Callable[..., Any]:
    """Compare the rollout's log-probs with the trainer's on the batch just made."""

    @functools.wraps(original)
    def make_experience_batch(self: Any, rollout_samples: Any) -> Any:
        import torch

        from fp16_patch.mismatch import METRIC_PREFIX, log_prob_store
        from fp16_patch.mismatch.metrics import mismatch_metrics

        experiences = original(self, rollout_samples)
        measured = [e for e in experiences if e.rollout_log_probs is not None and e.action_log_probs is not None]
        found: dict[str, float] = {}
        if Precision.current().keep_log_probs:
            for experience in measured:
                both = (getattr(experience, name) for name in _BOTH)
                log_prob_store.save(reports_folder() / log_prob_store.FOLDER, *both)
        if measured:
            flat = [torch.cat([getattr(e, name).reshape(-1).cpu() for e in measured]) for name in _BOTH]
            found = {f"{METRIC_PREFIX}{name}": value for name, value in mismatch_metrics(*flat).items()}
        setattr(self, _MISMATCH, found)
        return experiences

    return make_experience_batch


def add_mismatch(original: Callable[..., Any]) -> Callable[..., Any]:
    """Log what was measured in OpenRLHF's own stream: console, TensorBoard, wandb."""

    @functools.wraps(original)
    def train_step(self: Controller, rollout_samples: Any, global_step: int) -> Any:
        status, step = original(self, rollout_samples, global_step)
        return status | getattr(self.experience_maker, _MISMATCH, {}), step

    return train_step


def write_metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    """All of a step into a file where one is asked for. OpenRLHF adds the step's times after ``train_step``."""

    @functools.wraps(original)
    def save_logs_and_checkpoints(
        self: Controller, global_step: int, logs_dict: dict[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if path := os.environ.get(envs.METRICS):
            with open(path, "a") as file:
                file.write(json.dumps({"step": global_step, "data": _plain(logs_dict or {})}) + "\n")
        return original(self, global_step, logs_dict, *args, **kwargs)

    return save_logs_and_checkpoints


def _plain(status: dict[str, Any]) -> dict[str, float]:
    numbers = {name: value.item() if hasattr(value, "item") else value for name, value in status.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}


def _patch(process: str, name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=f"openrlhf-{name}",
        target=target,
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process=process,
        kind="wrap",
        upstream="none: our own metrics",
        **kwargs,
    )


EXPERIENCE_PATCHES: tuple[Patch, ...] = (
    _patch(
        "controller",
        "measure-mismatch",
        "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker.make_experience_batch",
        make=measure_mismatch,
        parameters=("self", "rollout_samples"),
        reason="the one place where both engines' log-probs of a whole batch lie together",
        remove_when="never",
    ),
)


def _steps(process: str, prefix: str, loop: str) -> tuple[Patch, ...]:
    return (
        _patch(
            process,
            f"{prefix}mismatch-metrics",
            f"{loop}.train_step",
            make=add_mismatch,
            parameters=("self", "rollout_samples", "global_step"),
            reason="OpenRLHF's vllm_kl is a signed mean in which differences cancel; adds what verl's runs report too",
            remove_when="never",
        ),
        _patch(
            process,
            f"{prefix}metrics-file",
            f"{loop}.save_logs_and_checkpoints",
            make=write_metrics,
            parameters=("self", "global_step", "logs_dict"),
            reason="OpenRLHF keeps its metrics in TensorBoard or wandb files; a comparison reads one line of JSON a "
            "step",
            remove_when="OpenRLHF can write its metrics as JSON",
        ),
    )


TRAINER_PATCHES = _steps("controller", "", "openrlhf.trainer.ppo_trainer:PPOTrainer")
ASYNC_TRAINER_PATCHES = _steps("async controller", "async-", "openrlhf.trainer.ppo_trainer_async:TrainingActor")
