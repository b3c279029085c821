# SPDX-License-Identifier: Apache-2.0
"""When a DeepSpeed engine overflows for too long, or when asked: run the batch again and see where it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.log import logger
from fp16_patch.precision import Precision

Engine = Any  # deepspeed.DeepSpeedEngine, never imported here


@dataclass
class _LastBatch:
    """Hold an engine's last micro-batch as a function, the engine's role, and how to train it in BF16."""

    run: Callable[[], object] | None = None
    role: str = "model"
    in_bf16: str = "train in BF16"


def remember(engine: Engine, run: Callable[[], object], *, role: str = "model", in_bf16: str = "train in BF16") -> None:
    """Keep ``run``, which does forward and ``engine.backward`` of the current micro-batch, until the next is kept.

    ``role`` names the engine in reports; ``in_bf16`` is the advice on how to train it in BF16.
    """
    last = attached(engine, _LastBatch)
    last.run, last.role, last.in_bf16 = run, role, in_bf16


def trace_if_asked(engine: Engine, scaler: Any, run: Callable[[], object], *, role: str = "model") -> bool:
    """Do ``run`` with every module watched, if it belongs to update ``fp16_patch.trace_update``; whether it was done.

    Call it in place of a micro-batch's forward and backward: it is the pass that would have been, not one more. The
    report is of the last micro-batch of that update.
    """
    update = Precision.current().trace_update
    if update is None or update != scaler.counts.updates + 1 or not engine.is_gradient_accumulation_boundary():
        return False
    _, path = _examine(engine, scaler, run, f"update {update} was to be traced", f"trace_of_update_{update}_{role}")
    logger.info("gradients of update %s traced: %s", update, path)
    return True


def stop_after_too_many(engine: Engine, scaler: Any, update: Any) -> None:
    """Raise :class:`Fp16PatchError`, on every rank, once ``max_consecutive_skips`` updates in a row were skipped.

    The last micro-batch that :func:`remember` was given is run again, at the scale it had; the engine is of no use
    afterwards.
    """
    from fp16_patch.loss_scaling.diagnosis.abort import reason_to_stop, stop, stop_unseen

    if (reason := reason_to_stop(scaler, update.skipped)) is None:
        return
    last = attached(engine, _LastBatch)
    if last.run is None:
        raise stop_unseen(last.role, scaler, reason)
    now, scaler.rule.scale = scaler.rule.scale, update.loss_scale
    try:
        seen, path = _examine(engine, scaler, last.run, reason, f"overflow_report_{last.role}", last.in_bf16)
    finally:
        scaler.rule.scale = now
    raise stop(last.role, scaler, seen, path)


def _examine(
    engine: Engine, scaler: Any, run: Callable[[], object], reason: str, stem: str, in_bf16: str = "train in BF16"
) -> tuple[Any, Path]:
    """``run`` traced; collective."""
    from fp16_patch.loss_scaling.diagnosis.abort import publish
    from fp16_patch.loss_scaling.diagnosis.cause import Remedies
    from fp16_patch.loss_scaling.diagnosis.observations import diagnose

    with _watched_gradients(engine.module) as gradients:
        diagnosis = diagnose(
            engine.module,
            scaler,
            run,
            reason,
            gradients=lambda: gradients,
            weights=lambda: _weights(engine.module),
            remedies=Remedies(in_bf16, fp32_modules=False),  # DeepSpeed makes the whole model half precision
        )
    return diagnosis, publish(diagnosis, stem, write=engine.global_rank == 0)


@contextmanager
def _watched_gradients(module: Any) -> Iterator[dict[str, Any]]:
    """Gradients of one pass as they arrive at the parameters: ZeRO takes them away as soon as they do."""
    from fp16_patch.loss_scaling.diagnosis.module_trace import Extremes, plain_name

    seen: dict[str, Any] = {}
    handles = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            extremes = Extremes()
            seen[plain_name(name)] = (extremes, getattr(parameter, "ds_numel", parameter.numel()))
            handles.append(parameter.register_hook(extremes.add))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _weights(module: Any) -> dict[str, Any]:
    """Under ZeRO-3 a parameter is empty between uses, and its part of this rank beside it."""
    from fp16_patch.loss_scaling.diagnosis.module_trace import Extremes, plain_name

    seen: dict[str, Any] = {}
    for name, parameter in module.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter)
        extremes = Extremes()
        extremes.add(held)
        seen[plain_name(name)] = (extremes, held.numel())
    return seen
