# SPDX-License-Identifier: Apache-2.0
"""When an engine of verl overflows for too long, or when asked: run the batch again and see where it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fp16_patch.precision import Precision

Engine = Any  # a verl.workers.engine.base.BaseEngine, never imported here
Loss = Callable[..., Any]

IN_BF16 = "train in BF16: +precision@_global_=bf16"


def trace_if_asked(engine: Engine, scaler: Any, data: Any, loss_function: Loss) -> None:
    """The report of update ``fp16_patch.trace_update``, made before it; the update is what it would have been."""
    update = Precision.in_force().trace_update
    if update is None or update != scaler.counts.updates + 1:
        return
    reason = f"update {update} was to be traced"
    _, path = _examine(engine, scaler, (data, loss_function), scaler.get_scale(), reason, f"trace_of_update_{update}")
    if _rank() == 0:
        print(f"fp16_patch: gradients of update {update} traced: {path}", flush=True)


def stop_after_too_many(engine: Engine, scaler: Any, update: Any, data: Any, loss_function: Loss) -> None:
    """Raise :class:`Fp16PatchError`, on every rank, once ``max_consecutive_skips`` updates in a row were skipped."""
    from fp16_patch.loss_scaling.stop import reason_to_stop, stop

    if (reason := reason_to_stop(scaler, update.skipped)) is not None:
        seen, path = _examine(engine, scaler, (data, loss_function), update.loss_scale, reason, "overflow_report")
        raise stop(_role(engine), scaler, seen, path)


def _examine(
    engine: Engine, scaler: Any, batch: tuple[Any, Loss], scale: float, reason: str, stem: str
) -> tuple[Any, Path]:
    """One more forward and backward of this batch at ``scale``, traced; collective. Leaves the engine as it was."""
    import torch

    from fp16_patch.loss_scaling.stop import publish

    def run() -> object:
        return engine.forward_backward_batch(*batch)

    engine.optimizer_zero_grad()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), _at(scaler, scale):
            diagnosis = _diagnose(engine, scaler, run, reason)
    finally:
        engine.optimizer_zero_grad()
    return diagnosis, publish(diagnosis, f"{stem}_{_role(engine)}", write=_rank() == 0)


def _diagnose(engine: Engine, scaler: Any, run: Callable[[], object], reason: str) -> Any:
    from fp16_patch.loss_scaling.finding import Remedies

    if isinstance(engine.module, list):
        from fp16_patch.frameworks.megatron import overflow

        remedies = Remedies(IN_BF16, fp32_modules=False)  # Megatron keeps all weights in one buffer of one dtype
        return overflow.diagnose(engine.optimizer, engine.module, run, reason, remedies=remedies)
    from fp16_patch.loss_scaling.diagnosis import diagnose

    return diagnose(engine.module, scaler, run, reason, remedies=Remedies(IN_BF16))


@contextmanager
def _at(scaler: Any, scale: float) -> Iterator[None]:
    """The loss is multiplied by ``scale`` meanwhile."""
    now = scaler.get_scale()
    _set(scaler, scale)
    try:
        yield
    finally:
        _set(scaler, now)


def _set(scaler: Any, scale: float) -> None:
    if hasattr(scaler, "rule"):
        scaler.rule.scale = scale
    else:  # torch's scaler keeps it on the device
        scaler.ensure_scale().fill_(scale)


def _role(engine: Engine) -> str:
    return "critic" if engine.model_config.model_type == "value_model" else "actor"


def _rank() -> int:
    import torch

    return int(torch.distributed.get_rank())
