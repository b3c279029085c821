# SPDX-License-Identifier: Apache-2.0
"""When a Megatron model overflows for too long, or when asked: watch a pass, and say where it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fp16_patch.engines.megatron.sub_optimizers import Optimizer, require_loss_scaler
from fp16_patch.log import logger
from fp16_patch.loss_scaling.update import Update

T = TypeVar("T")


def run_pass(optimizer: Optimizer, run: Callable[[], T], *, trace_update: int | None = None, role: str = "model") -> T:
    """``run()``, forward and backward of all micro-batches of one update, by Megatron's schedules.

    With every module watched and a report written, if this is update ``trace_update``, counted from 1.
    """
    scaler = require_loss_scaler(optimizer)
    if trace_update is None or trace_update != scaler.counts.updates + 1:
        return run()
    results: list[T] = []
    reason, stem = f"update {trace_update} was to be traced", f"trace_of_update_{trace_update}_{role}"
    _, path = _examine(optimizer, scaler, lambda: results.append(run()), reason, stem)
    logger.info("gradients of update %s traced: %s", trace_update, path)
    return results[0]


def stop_after_too_many(
    optimizer: Optimizer,
    update: Update,
    run: Callable[[], object] | None = None,
    *,
    role: str = "model",
    in_bf16: str = "train in BF16",
) -> None:
    """Raise :class:`Fp16PatchError`, on every rank, once ``max_consecutive_skips`` updates in a row were skipped.

    ``run`` does forward and backward of the update's batch once more, at the scale it had; None where it is gone.
    ``role`` names the model in the report, ``in_bf16`` is the advice on how to train it in BF16.
    """
    from fp16_patch.loss_scaling.diagnosis.abort import reason_to_stop, stop, stop_unseen

    scaler = require_loss_scaler(optimizer)
    if (reason := reason_to_stop(scaler, update.skipped)) is None:
        return
    if run is None:
        raise stop_unseen(role, scaler, reason)
    _zero_gradients(optimizer, scaler)
    try:
        with scaler.at_scale(update.loss_scale):
            seen, path = _examine(optimizer, scaler, run, reason, f"overflow_report_{role}", in_bf16)
    finally:
        _zero_gradients(optimizer, scaler)
    raise stop(role, scaler, seen, path)


def _examine(
    optimizer: Optimizer,
    scaler: Any,
    run: Callable[[], object],
    reason: str,
    stem: str,
    in_bf16: str = "train in BF16",
) -> tuple[Any, Path]:
    """``run`` traced; collective."""
    from fp16_patch.engines.megatron.module_trace import held, trace_model
    from fp16_patch.loss_scaling.diagnosis.abort import publish
    from fp16_patch.loss_scaling.diagnosis.cause import Remedies
    from fp16_patch.loss_scaling.diagnosis.observations import diagnose

    model = scaler.model
    with _losses_through(scaler):
        diagnosis = diagnose(
            model[0],
            scaler,
            run,
            reason,
            trace=lambda: trace_model(model),
            gradients=lambda: held(model, lambda parameter: getattr(parameter, "main_grad", None)),
            weights=lambda: held(model, lambda parameter: parameter),
            remedies=Remedies(in_bf16, fp32_modules=False),  # Float16Module makes the whole model half precision
        )
    return diagnosis, publish(diagnosis, stem, write=_writes())


@contextmanager
def _losses_through(scaler: Any) -> Iterator[None]:
    """The schedules scale losses by the scaler's own ``scale``, which a diagnosis watches."""

    def scale(outputs: Any) -> Any:
        # With a one that needs no gradient they ask for the scale of auxiliary losses: that is no loss.
        return scaler.scale(outputs) if outputs.requires_grad else outputs * scaler.get_scale()

    usual = [(chunk.config, chunk.config.grad_scale_func) for chunk in scaler.model]
    try:
        for config, _ in usual:
            config.grad_scale_func = scale
        yield
    finally:
        for config, function in usual:
            config.grad_scale_func = function


def _zero_gradients(optimizer: Optimizer, scaler: Any) -> None:
    for chunk in scaler.model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()


def _writes() -> bool:
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0
