# SPDX-License-Identifier: Apache-2.0
"""Measure the mismatch of trainer and rollout, and write each step's metrics into a file on request.

The patches run in the PPO trainer's Ray actor (see ``controller``).
"""

from __future__ import annotations

import json
import os
from typing import Any

from fp16_patch import envs
from fp16_patch.frameworks.openrlhf.releases import ASYNC_CONTROLLER, ASYNC_TRAINER, CONTROLLER, RELEASE, TRAINER
from fp16_patch.patching import ProcessKind, hook, wrap
from fp16_patch.precision import Precision, reports_folder

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here

_METRICS: dict[str, Any] = {
    "reason": "OpenRLHF's vllm_kl is a signed mean in which differences cancel; adds the metrics of verl's runs",
    "upstream": "none: our own metrics",
    "remove_when": "never",
}
_FILE: dict[str, Any] = {
    "reason": "OpenRLHF writes its metrics to TensorBoard or wandb; a comparison reads one line of JSON a step",
    "upstream": "none: our own metrics",
    "remove_when": "OpenRLHF can write its metrics as JSON",
}

_LOG_PROBS = ("rollout_log_probs", "action_log_probs", "action_mask")

# A plain attribute, as _UPDATED of ``controller`` is and for the same reason: add_mismatch ships by value.
_MISMATCH = "_fp16_patch_mismatch"
"""On the experience maker: the metrics of the batch it has just made."""


@wrap(f"{ASYNC_TRAINER}.train_step", name="openrlhf-async-mismatch-metrics", **_METRICS, **ASYNC_CONTROLLER)
@wrap(f"{TRAINER}.train_step", name="openrlhf-mismatch-metrics", **_METRICS, **CONTROLLER)
def add_mismatch(original: Any, self: Controller, rollout_samples: Any, global_step: int) -> Any:
    """Add the mismatch to OpenRLHF's own metrics: console, TensorBoard, wandb."""
    status, step = original(self, rollout_samples, global_step)
    return status | getattr(self.experience_maker, _MISMATCH, {}), step


@hook(f"{ASYNC_TRAINER}.save_logs_and_checkpoints", name="openrlhf-async-metrics-file", **_FILE, **ASYNC_CONTROLLER)
@hook(f"{TRAINER}.save_logs_and_checkpoints", name="openrlhf-metrics-file", **_FILE, **CONTROLLER)
def write_metrics(
    original: Any, self: Controller, global_step: int, logs_dict: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Append the step's metrics to the file ``FP16_PATCH_METRICS``. OpenRLHF adds its times after ``train_step``."""
    if path := os.environ.get(envs.METRICS):
        with open(path, "a") as file:
            file.write(json.dumps({"step": global_step, "data": _numbers(logs_dict or {})}) + "\n")
    return original(self, global_step, logs_dict, *args, **kwargs)


def _numbers(status: dict[str, Any]) -> dict[str, float]:
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in status.items()}
    return {name: float(value) for name, value in plain.items() if isinstance(value, int | float)}


@hook(
    "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker.make_experience_batch",
    name="openrlhf-measure-mismatch",
    release=RELEASE,
    processes={ProcessKind.CONTROLLER, ProcessKind.ASYNC_CONTROLLER},
    reason="the only function that has both engines' log-probs of a whole batch",
    upstream="none: our own metrics",
)
def measure_mismatch(original: Any, self: Any, rollout_samples: Any) -> Any:
    """Compare the rollout's log-probs with the trainer's on the new batch."""
    import torch

    from fp16_patch.mismatch import METRIC_PREFIX, log_prob_store
    from fp16_patch.mismatch.metrics import mismatch_metrics

    experiences = original(self, rollout_samples)
    batches = [[getattr(experience, name) for name in _LOG_PROBS] for experience in experiences]
    measured = [batch for batch in batches if batch[0] is not None and batch[1] is not None]
    metrics: dict[str, float] = {}
    if Precision.current().keep_log_probs:
        for batch in measured:
            log_prob_store.save(reports_folder() / log_prob_store.FOLDER, *batch)
    if measured:
        flat = [torch.cat([part.reshape(-1).cpu() for part in parts]) for parts in zip(*measured, strict=True)]
        metrics = {f"{METRIC_PREFIX}{name}": value for name, value in mismatch_metrics(*flat).items()}
    setattr(self, _MISMATCH, metrics)
    return experiences
