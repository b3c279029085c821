# SPDX-License-Identifier: Apache-2.0
"""Trace a pass of one of verl's engines, when asked or after too many skipped updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fp16_patch.precision import Precision

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.diagnosis.replay import Replay

Engine = Any  # a verl.workers.engine.base.BaseEngine, never imported here
Loss = Callable[..., Any]

IN_BF16 = "train in BF16: +precision@_global_=bf16"


def trace_if_asked(engine: Engine, scaler: Any, data: Any, loss_function: Loss) -> None:
    """Write the report of update ``fp16_patch.trace_update`` before the update, which it does not change."""
    update = Precision.current().trace_update
    if update is not None:
        run = partial(engine.forward_backward_batch, data, loss_function)
        _new_replay(engine, scaler).trace_if_due(update, run)


def stop_after_too_many(engine: Engine, scaler: Any, update: Any, data: Any, loss_function: Loss) -> None:
    """Raise :class:`Fp16PatchError`, on every rank, once ``max_consecutive_skips`` updates in a row were skipped."""
    run = partial(engine.forward_backward_batch, data, loss_function)
    _new_replay(engine, scaler).stop_after_too_many(update, run)


def _new_replay(engine: Engine, scaler: Any) -> Replay:
    role = "critic" if engine.model_config.model_type == "value_model" else "actor"
    extra_pass = partial(_extra_pass, engine)
    if isinstance(engine.module, list):  # Megatron's chunks
        from fp16_patch.engines.megatron.replay import new_replay

        return new_replay(engine.optimizer, role, IN_BF16, extra_pass)
    from fp16_patch.loss_scaling.diagnosis.advice import Fallbacks
    from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleTrace
    from fp16_patch.loss_scaling.diagnosis.replay import Replay

    trace = partial(ModuleTrace, engine.module)
    return Replay(scaler, trace, role, Fallbacks(IN_BF16), extra_pass, is_writer=engine.rank == 0)


@contextmanager
def _extra_pass(engine: Engine) -> Iterator[None]:
    """Leave no gradient and no random number of one more pass behind."""
    import torch

    engine.optimizer_zero_grad()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        engine.optimizer_zero_grad()
