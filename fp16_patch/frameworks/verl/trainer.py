# SPDX-License-Identifier: Apache-2.0
"""Patches of verl's training step that every engine needs: metrics, schedule, and the abort after too many skips.

An engine that trains with a loss scale has it as ``engine.scaler``, and calls :func:`record_update` at each update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.frameworks.verl import mismatch
from fp16_patch.frameworks.verl.releases import TRAINER_RANK
from fp16_patch.loss_scaling.update import Update
from fp16_patch.patching import wrap
from fp16_patch.report.observed_dtypes import record_dtype

Engine = Any  # a verl.workers.engine.base.BaseEngine, never imported here


@dataclass
class UpdateState:
    """State on an engine: its last update, and whether its LR scheduler is due."""

    last: Update | None = None
    weights_changed: bool = False
    """Since the LR scheduler last stepped."""


def scaler_of(engine: Engine) -> Any:
    """Return the engine's :class:`~fp16_patch.loss_scaling.scaler_base.ScalerBase`, or None."""
    scaler = getattr(engine, "scaler", None)
    return scaler if hasattr(scaler, "counts") else None  # torch's own has none


def record_update(engine: Engine, update: Update) -> float | None:
    """Keep this update for its metrics and the LR schedule. Return its gradient norm, as verl's step does."""
    state = attached(engine, UpdateState)
    state.last = update
    state.weights_changed = state.weights_changed or not update.skipped
    return update.grad_norm


def is_megatron(engine: Engine) -> bool:
    """Return whether this is verl's Megatron engine, whose ``module`` is a list of chunks."""
    return isinstance(engine.module, list)


def gradients_of(engine: Engine) -> Iterator[Any]:
    """Yield the gradients held; Megatron accumulates them in ``main_grad``."""
    # Megatron has one chunk for each virtual pipeline stage of this rank.
    for chunk in engine.module if is_megatron(engine) else [engine.module]:
        for parameter in chunk.parameters():
            gradient = getattr(parameter, "main_grad", None)
            if (gradient := parameter.grad if gradient is None else gradient) is not None:
                yield gradient


@wrap(
    "verl.workers.engine.base:BaseEngine.train_batch",
    name="loss-scale-metrics",
    **TRAINER_RANK,
    reason="verl reports neither the loss scale nor a skipped update, logs an infinite norm, and goes on for ever; "
    "in bypass mode it measures no mismatch",
    upstream="verl workers/engine/fsdp/transformer_impl.py:817-827",
    remove_when="verl logs the loss scale and skipped updates and stops by itself",
)
def train_batch(original: Callable[..., Any], self: Engine, data: Any, loss_function: Callable[..., Any]) -> Any:
    """Trace the update if asked, log the scaler's and bypass mode's metrics, and abort after too many skips."""
    from fp16_patch.frameworks.verl import replay

    scaler = scaler_of(self)
    if scaler is not None:
        replay.trace_if_asked(self, scaler, data, loss_function)
    loss, log_probs = mismatch.observe_loss(self, data, loss_function)
    outputs = original(self, data, loss)
    # Without a scaler, verl has dropped non-finite gradients by now.
    if gradients := [gradient.dtype for gradient in gradients_of(self)]:
        record_dtype(self, "gradients", *gradients)
    update = attached(self, UpdateState).last
    if self.is_mp_src_rank_with_outputs():
        outputs["metrics"] |= mismatch.metrics(self, log_probs)
        if scaler is not None:
            _log_update(outputs["metrics"], update, scaler)
    if scaler is not None:
        replay.stop_after_too_many(self, scaler, update, data, loss_function)
    return outputs


def _log_update(metrics: dict[str, Any], update: Any, scaler: Any) -> None:
    from fp16_patch.loss_scaling.update import describe

    if update.skipped:
        metrics.pop("grad_norm")  # it has none
    metrics |= {name: [value] for name, value in describe(update, scaler.counts).items()}


LR_SCHEDULE: dict[str, Any] = {
    "reason": "verl steps the LR schedule on skipped updates too",
    "upstream": "verl workers/engine_workers.py, TrainingWorker.train_batch",
    "remove_when": "verl holds the schedule when nothing was updated",
}
"""What the two patches of ``lr_scheduler_step`` have in common."""


def step_lr_scheduler(original: Callable[..., Any], engine: Engine) -> Any:
    """Step the LR scheduler only if weights have changed since it last did. Return the learning rate."""
    if scaler_of(engine) is None:
        return original(engine)
    state = attached(engine, UpdateState)
    changed, state.weights_changed = state.weights_changed, False
    return original(engine) if changed else engine.optimizer.param_groups[0]["lr"]
