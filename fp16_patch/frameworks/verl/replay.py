# SPDX-License-Identifier: Apache-2.0
"""Trace a pass of one of verl's engines, when requested or after too many skipped updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fp16_patch.frameworks.verl.state import Engine, is_megatron, role_of

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.diagnosis.replay import Replay

IN_BF16 = "train in BF16: +precision@_global_=bf16"


def new_replay(engine: Engine, scaler: Any) -> Replay:
    """Return a :class:`Replay` of the model that ``engine`` trains under ``scaler``."""
    role = role_of(engine)
    extra_pass = partial(_extra_pass, engine)
    if is_megatron(engine):
        from fp16_patch.engines.megatron import replay

        return replay.new_replay(engine.optimizer, role, IN_BF16, extra_pass)
    from fp16_patch.loss_scaling.diagnosis.advice import Fallbacks
    from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleTrace
    from fp16_patch.loss_scaling.diagnosis.replay import Replay

    trace = partial(ModuleTrace, engine.module)
    return Replay(scaler, trace, role, Fallbacks(IN_BF16), extra_pass)


@contextmanager
def _extra_pass(engine: Engine) -> Iterator[None]:
    """Leave no gradient and no change of the random state behind."""
    import torch

    engine.optimizer_zero_grad()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        engine.optimizer_zero_grad()
