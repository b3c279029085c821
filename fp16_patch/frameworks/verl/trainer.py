# SPDX-License-Identifier: Apache-2.0
"""What becomes of an update, whichever of verl's engines made it: skips everybody hears of, a stop with a reason.

An engine that trains with a loss scale holds it as ``engine.scaler``, and notes each update here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from fp16_patch.frameworks.verl.releases import in_trainer_rank
from fp16_patch.loss_scaling.update import Update
from fp16_patch.patching import Patch
from fp16_patch.report.observed_dtypes import record_dtype

_UPDATE = "_fp16_patch_update"  # on an engine: its last Update
_MOVED = "_fp16_patch_moved"  # on an engine: weights have changed since its LR scheduler last stepped

Engine = Any  # a verl.workers.engine.base.BaseEngine, never imported here


def scaler_of(engine: Engine) -> Any:
    """Return the engine's :class:`~fp16_patch.loss_scaling.scaler_base.ScalerBase`, or None."""
    scaler = getattr(engine, "scaler", None)
    return scaler if hasattr(scaler, "counts") else None  # torch's own has none


def note(engine: Engine, update: Update) -> float | None:
    """Keep this update for its metrics and the schedule. Returns its gradient norm, what verl wants of a step."""
    setattr(engine, _UPDATE, update)
    setattr(engine, _MOVED, getattr(engine, _MOVED, False) or not update.skipped)
    return update.grad_norm


def chunks_of(engine: Engine) -> list[Any]:
    """Return the engine's modules: one on FSDP, one a virtual pipeline stage of this rank on Megatron."""
    return list(engine.module) if isinstance(engine.module, list) else [engine.module]


def gradients_of(engine: Engine) -> Iterator[Any]:
    """Return the gradients held; Megatron adds them up beside the parameters, in ``main_grad``."""
    for chunk in chunks_of(engine):
        for parameter in chunk.parameters():
            gradient = getattr(parameter, "main_grad", None)
            if (gradient := parameter.grad if gradient is None else gradient) is not None:
                yield gradient


def hold_lr_on_skips(original: Callable[..., Any]) -> Callable[..., Any]:
    """Move the schedule only when weights have moved since it last did."""

    @functools.wraps(original)
    def lr_scheduler_step(self: Engine) -> Any:
        if scaler_of(self) is None:
            return original(self)
        moved = getattr(self, _MOVED, False)
        setattr(self, _MOVED, False)
        return original(self) if moved else self.optimizer.param_groups[0]["lr"]

    return lr_scheduler_step


def publish_updates(original: Callable[..., Any]) -> Callable[..., Any]:
    """Log the scaler's metrics, trace the update that was asked for, and abort after too many skips.

    In bypass mode the mismatch is logged too. Metrics go into verl's own stream.
    """

    @functools.wraps(original)
    def train_batch(self: Engine, data: Any, loss_function: Callable[..., Any]) -> Any:
        from fp16_patch.frameworks.verl import mismatch, replay
        from fp16_patch.loss_scaling.update import describe

        scaler = scaler_of(self)
        if scaler is not None:
            replay.trace_if_asked(self, scaler, data, loss_function)
        loss, log_probs = mismatch.watch(self, data, loss_function)
        outputs = original(self, data, loss)
        if self.is_mp_src_rank_with_outputs():
            outputs["metrics"] |= mismatch.metrics(self, log_probs)
        # Non-finite ones are gone already where there is no scaler: verl drops them.
        if gradients := [gradient.dtype for gradient in gradients_of(self)]:
            record_dtype(self, "gradients", *gradients)
        if scaler is not None:
            update = getattr(self, _UPDATE)
            if self.is_mp_src_rank_with_outputs():
                metrics = outputs["metrics"]
                if update.skipped:
                    metrics.pop("grad_norm")  # there is none
                metrics |= {name: [value] for name, value in describe(update, scaler.counts).items()}
            replay.stop_after_too_many(self, scaler, update, data, loss_function)
        return outputs

    return train_batch


def hold_lr_patch(name: str, engine: str) -> Patch:
    """:func:`hold_lr_on_skips` on one of verl's engines."""
    return in_trainer_rank(
        name=f"{name}-lr-scheduler-step",
        target=f"{engine}.lr_scheduler_step",
        kind="wrap",
        make=hold_lr_on_skips,
        parameters=("self",),
        reason="verl steps the LR schedule on skipped updates too",
        upstream="verl workers/engine_workers.py, TrainingWorker.train_batch",
        remove_when="verl holds the schedule when nothing was updated",
    )


PATCHES: tuple[Patch, ...] = (
    in_trainer_rank(
        name="loss-scale-metrics",
        target="verl.workers.engine.base:BaseEngine.train_batch",
        kind="wrap",
        make=publish_updates,
        parameters=("self", "data", "loss_function"),
        reason="verl reports neither the loss scale nor a skipped update, logs an infinite norm, and goes on for ever; "
        "in bypass mode it measures no mismatch",
        upstream="verl workers/engine/fsdp/transformer_impl.py:817-827",
        remove_when="verl logs the loss scale and skipped updates and stops by itself",
    ),
)
