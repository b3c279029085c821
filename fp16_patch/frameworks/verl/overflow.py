# SPDX-License-Identifier: Apache-2.0
"""When verl's FSDP engine overflows for too long, or when asked: run the batch again and see where it happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision import REPORTS_VARIABLE, Precision

Engine = Any  # verl.workers.engine.fsdp.transformer_impl.FSDPEngine, never imported here
Loss = Callable[..., Any]


def trace_if_asked(engine: Engine, scaler: Any, data: Any, loss_function: Loss) -> None:
    """The report of update ``fp16_patch.trace_update``, made before it; the update is what it would have been."""
    update = Precision.in_force().trace_update
    if update is None or update != scaler.counts.updates + 1:
        return
    reason = f"update {update} was to be traced"
    _, path = _examine(engine, scaler, (data, loss_function), scaler.get_scale(), reason, f"trace_of_update_{update}")
    if engine.rank == 0:
        print(f"fp16_patch: gradients of update {update} traced: {path}", flush=True)


def stop_after_too_many(engine: Engine, scaler: Any, update: Any, data: Any, loss_function: Loss) -> None:
    """Raise :class:`Fp16PatchError`, on every rank, once ``max_consecutive_skips`` updates in a row were skipped."""
    limit = scaler.settings.max_consecutive_skips
    if not update.skipped or scaler.counts.consecutive < limit:
        return
    reason = f"{scaler.counts.consecutive} updates in a row were skipped"
    diagnosis, path = _examine(engine, scaler, (data, loss_function), update.loss_scale, reason, "overflow_report")
    where = ", ".join(diagnosis.suspects) or "none in this batch"
    raise Fp16PatchError(
        f"{_role(engine)}: {reason} (fp16_patch.loss_scaling.max_consecutive_skips={limit}), "
        f"the loss scale is {scaler.get_scale():g}; modules that overflowed first: {where}",
        allowed="an update at least now and then",
        next_step="; ".join(diagnosis.advice) + f". Read {path} on rank 0's node; the last checkpoint is untouched",
    )


def _examine(
    engine: Engine, scaler: Any, batch: tuple[Any, Loss], scale: float, reason: str, stem: str
) -> tuple[Any, Path]:
    """One more forward and backward of this batch at ``scale``, traced; collective. Leaves the engine as it was."""
    import torch

    from fp16_patch.loss_scaling.diagnosis import diagnose
    from fp16_patch.loss_scaling.overflow_report import render, save

    now = scaler.get_scale()
    scaler.ensure_scale().fill_(scale)
    engine.optimizer_zero_grad()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            diagnosis = diagnose(engine.module, scaler, lambda: engine.forward_backward_batch(*batch), reason)
    finally:
        engine.optimizer_zero_grad()
        scaler.ensure_scale().fill_(now)
    folder = Path(os.environ.get(REPORTS_VARIABLE, "."))
    path = folder / f"{stem}_{_role(engine)}.txt"
    if engine.rank == 0:
        save(diagnosis, folder, path.stem)
        print(f"\n{render(diagnosis)}\n", flush=True)
    return diagnosis, path


def _role(engine: Engine) -> str:
    return "critic" if engine.model_config.model_type == "value_model" else "actor"
