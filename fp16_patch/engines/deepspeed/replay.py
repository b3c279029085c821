# SPDX-License-Identifier: Apache-2.0
"""Trace a pass of a DeepSpeed engine, when asked or after too many skipped updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached
from fp16_patch.precision import Precision

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.diagnosis.replay import Replay

Engine = Any  # deepspeed.DeepSpeedEngine, never imported here


@dataclass
class _LastBatch:
    """Hold the last micro-batch of an engine as a function, the engine's role, and how to train it in BF16."""

    run: Callable[[], object] | None = None
    role: str = "model"
    in_bf16: str = "train in BF16"


def remember(engine: Engine, run: Callable[[], object], *, role: str = "model", in_bf16: str = "train in BF16") -> None:
    """Keep ``run``, which does forward and ``engine.backward`` of the current micro-batch, until the next is kept.

    ``role`` names the engine in reports. ``in_bf16`` is the advice on how to train it in BF16.
    """
    last = attached(engine, _LastBatch)
    last.run, last.role, last.in_bf16 = run, role, in_bf16


def trace_if_asked(engine: Engine, scaler: Any, run: Callable[[], object], *, role: str = "model") -> bool:
    """Trace ``run`` if it belongs to update ``fp16_patch.trace_update``, and return whether it ran.

    Call it in place of a micro-batch's forward and backward: ``run`` is that pass, not an additional one. The report
    shows the last micro-batch of that update.
    """
    update = Precision.current().trace_update
    if update is None or not engine.is_gradient_accumulation_boundary():
        return False
    return _new_replay(engine, scaler, role).trace_if_due(update, run)


def stop_after_too_many(engine: Engine, scaler: Any, update: Any) -> None:
    """Raise :class:`Fp16PatchError`, on every rank, if too many updates were skipped.

    The last micro-batch that :func:`remember` was given is run again, at the scale it had. Do not use the engine
    afterwards.
    """
    last = attached(engine, _LastBatch)
    _new_replay(engine, scaler, last.role, last.in_bf16).stop_after_too_many(update, last.run)


def _new_replay(engine: Engine, scaler: Any, role: str, in_bf16: str = "train in BF16") -> Replay:
    from fp16_patch.loss_scaling.diagnosis.advice import Fallbacks
    from fp16_patch.loss_scaling.diagnosis.module_trace import (
        Extremes,
        ModuleTrace,
        Watched,
        plain_name,
        watch_parameters,
    )
    from fp16_patch.loss_scaling.diagnosis.replay import Replay

    class ZeroTrace(ModuleTrace):
        """Observe gradients as they arrive at the parameters: ZeRO takes them away at once."""

        def __init__(self) -> None:
            super().__init__(engine.module)
            self._arrived: dict[str, Extremes] = {}
            for name, parameter in engine.module.named_parameters():
                if parameter.requires_grad:
                    extremes = self._arrived[plain_name(name)] = Extremes()
                    self._handles.append(parameter.register_hook(extremes.add))

        def gradients(self) -> Watched:
            return self._arrived

        def weights(self) -> Watched:
            # Under ZeRO-3 a parameter is empty between uses; this rank's part of it is its ds_tensor.
            named = engine.module.named_parameters()
            return watch_parameters(((name, getattr(p, "ds_tensor", p)) for name, p in named), lambda part: part)

    fallbacks = Fallbacks(in_bf16, fp32_modules=False)  # DeepSpeed makes the whole model half precision
    return Replay(scaler, ZeroTrace, role, fallbacks)
