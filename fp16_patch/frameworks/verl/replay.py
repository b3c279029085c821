# SPDX-License-Identifier: Apache-2.0
"""When an engine of verl overflows for too long, or when asked: run the batch again and see where it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fp16_patch.log import logger
from fp16_patch.precision import Precision

Engine = Any  # a verl.workers.engine.base.BaseEngine, never imported here
Loss = Callable[..., Any]

IN_BF16 = "train in BF16: +precision@_global_=bf16"


def trace_if_asked(engine: Engine, scaler: Any, data: Any, loss_function: Loss) -> None:
    """Write the report of update ``fp16_patch.trace_update`` before it is made; the update is not changed."""
    update = Precision.current().trace_update
    if update is None or update != scaler.counts.updates + 1:
        return
    with _another_pass(engine):
        if isinstance(engine.module, list):
            from fp16_patch.engines.megatron import replay

            replay.run_pass(
                engine.optimizer,
                lambda: engine.forward_backward_batch(data, loss_function),
                trace_update=update,
                role=_role(engine),
            )
            return
        reason, stem = f"update {update} was to be traced", f"trace_of_update_{update}"
        _, path = _examine(engine, scaler, (data, loss_function), scaler.get_scale(), reason, stem)
    logger.info("gradients of update %s traced: %s", update, path)


def stop_after_too_many(engine: Engine, scaler: Any, update: Any, data: Any, loss_function: Loss) -> None:
    """Raise :class:`Fp16PatchError`, on every rank, once ``max_consecutive_skips`` updates in a row were skipped."""
    from fp16_patch.loss_scaling.diagnosis.abort import reason_to_stop, stop

    if (reason := reason_to_stop(scaler, update.skipped)) is None:
        return
    with _another_pass(engine):
        if isinstance(engine.module, list):
            from fp16_patch.engines.megatron import replay

            replay.stop_after_too_many(
                engine.optimizer,
                update,
                lambda: engine.forward_backward_batch(data, loss_function),
                role=_role(engine),
                in_bf16=IN_BF16,
            )
            return  # it has raised
        seen, path = _examine(engine, scaler, (data, loss_function), update.loss_scale, reason, "overflow_report")
    raise stop(_role(engine), scaler, seen, path)


@contextmanager
def _another_pass(engine: Engine) -> Iterator[None]:
    """One more forward and backward, that leaves no gradient and no random number behind."""
    import torch

    engine.optimizer_zero_grad()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        engine.optimizer_zero_grad()


def _examine(
    engine: Engine, scaler: Any, batch: tuple[Any, Loss], scale: float, reason: str, stem: str
) -> tuple[Any, Path]:
    """Run this batch on an FSDP engine at ``scale`` and trace it; collective."""
    from fp16_patch.loss_scaling.diagnosis.abort import publish
    from fp16_patch.loss_scaling.diagnosis.cause import Remedies
    from fp16_patch.loss_scaling.diagnosis.observations import diagnose

    def run() -> object:
        return engine.forward_backward_batch(*batch)

    now = scaler.get_scale()
    scaler.ensure_scale().fill_(scale)
    try:
        diagnosis = diagnose(engine.module, scaler, run, reason, remedies=Remedies(IN_BF16))
    finally:
        scaler.ensure_scale().fill_(now)
    return diagnosis, publish(diagnosis, f"{stem}_{_role(engine)}", write=engine.rank == 0)


def _role(engine: Engine) -> str:
    return "critic" if engine.model_config.model_type == "value_model" else "actor"
