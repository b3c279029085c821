# SPDX-License-Identifier: Apache-2.0
"""Report the precision of a run of verl's legacy trainer (``trainer.use_v1=False``) before and after its first update.

Its nodes and processes are checked by ``controller.py``, like those of the V1 trainer. Line numbers are those of verl
0.9.1.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.frameworks.verl import controller, legacy_rollout_health, mismatch
from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.patching import hook, wrap

Trainer = Any  # verl.trainer.ppo.ray_trainer.RayPPOTrainer, never imported here
DataProto = Any  # verl's padded batch

_TRAINER = "verl.trainer.ppo.ray_trainer:RayPPOTrainer"


@hook(
    f"{_TRAINER}.fit",
    name="legacy-precision-report-start",
    **TASK_RUNNER,
    reason="a run that only validates, or has no step, has no update to report at; saves what is known before training",
)
def report_before_training(original: Any, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Save the precision report before the first validation. Later reports complete it."""
    legacy_rollout_health.remember_trainer(self)
    controller.publish_if_due(self, controller.START)
    return original(self, *args, **kwargs)


@hook(
    f"{_TRAINER}._update_critic",
    name="legacy-precision-report",
    **TASK_RUNNER,
    reason="prints and saves the dtypes in force once, before the first update; a critic is updated before its actor",
)
def report_before_first_update(original: Any, self: Trainer, batch: DataProto) -> Any:
    """Publish the precision report after the first log-probs were computed, before anything is updated."""
    controller.publish_if_due(self, controller.BEFORE)
    return original(self, batch)


@wrap(
    f"{_TRAINER}._update_actor",
    name="legacy-precision-report-complete",
    **TASK_RUNNER,
    reason="gradients and optimizer state exist only after the first update; completes the saved report; in bypass "
    "mode renames the mismatch, which only the updates can measure, as in other modes",
    upstream="none: our own proof",
    remove_when="verl removes its legacy trainer",
)
def report_around_first_update(original: Any, self: Trainer, batch: DataProto) -> Any:
    """Publish the report if no critic was updated, add gradients and optimizer state, rename bypass mode's metrics."""
    controller.publish_if_due(self, controller.BEFORE)
    result = original(self, batch)
    mismatch.strip_actor_prefix(result.meta_info["metrics"])
    controller.publish_if_due(self, controller.AFTER)
    return result
