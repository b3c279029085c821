# SPDX-License-Identifier: Apache-2.0
"""Keep state on a verl engine, and tell engines apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.update import Update

Engine = Any  # a verl.workers.engine.base.BaseEngine, never imported here


@dataclass
class EngineState:
    """State on an engine."""

    last_update: Update | None = None
    weights_changed: bool = False
    """Whether weights have changed since the LR scheduler last stepped."""
    begins_step: bool = True
    """Whether the next update is the first of a step."""
    counts: dict[str, float] = field(default_factory=dict)
    """Counts of the updates of this step so far."""


def scaler_of(engine: Engine) -> Any:
    """Return the engine's :class:`~fp16_patch.loss_scaling.scaler_base.ScalerBase`, or None."""
    scaler = getattr(engine, "scaler", None)
    return scaler if hasattr(scaler, "counts") else None  # torch's own scaler has no counts


def is_megatron(engine: Engine) -> bool:
    """Return whether this is verl's Megatron engine, whose ``module`` is a list of chunks."""
    return isinstance(engine.module, list)


def role_of(engine: Engine) -> str:
    """Return ``"critic"`` or ``"actor"``."""
    return "critic" if engine.model_config.model_type == "value_model" else "actor"
