# SPDX-License-Identifier: Apache-2.0
"""The settings of dynamic loss scaling, in torch's names, validated."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fp16_patch.errors import Fp16PatchError


@dataclass(frozen=True)
class LossScaling:
    """Arguments of ``torch.amp.GradScaler``; the same names, the same meaning.

    The defaults are those of the paper's FSDP runs (verl_fp16.patch in sail-sg/Precision-RL: torch's
    default initial scale, ``growth_interval=400`` optimizer steps). Raises :class:`Fp16PatchError` on a
    value torch would accept and then scale wrongly with.
    """

    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 400

    def __post_init__(self) -> None:
        for name in ("init_scale", "growth_factor", "backoff_factor"):
            value = _number(name, getattr(self, name))
            # Only powers of two multiply FP16 gradients without rounding them.
            if value <= 0 or math.frexp(value)[0] != 0.5:
                raise _refuse(name, getattr(self, name), "a positive power of two, such as 65536, 2 or 0.5")
            object.__setattr__(self, name, value)
        if self.growth_factor < 1:
            raise _refuse("growth_factor", self.growth_factor, "1 (never grow) or more")
        if self.backoff_factor >= 1:
            raise _refuse("backoff_factor", self.backoff_factor, "a power of two below 1, such as 0.5")
        if not 1 <= self.init_scale <= 2.0**31:
            raise _refuse("init_scale", self.init_scale, "1 to 2**31: below, gradients underflow; above, all overflow")
        interval = _number("growth_interval", self.growth_interval)
        if not interval.is_integer() or interval < 1:
            raise _refuse("growth_interval", self.growth_interval, "a whole number of optimizer steps, 1 or more")
        object.__setattr__(self, "growth_interval", int(self.growth_interval))

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> LossScaling:
        """Build from a configuration node; an unknown key is refused by name."""
        known = [field.name for field in fields(cls)]
        if not isinstance(settings, Mapping):
            raise Fp16PatchError(
                f"fp16_patch.loss_scaling={settings!r} is not a group of settings",
                allowed=", ".join(f"fp16_patch.loss_scaling.{name}" for name in known),
                next_step="set one of them, or remove the override",
            )
        for key in settings:
            if key not in known:
                raise Fp16PatchError(
                    f"unknown loss scaling setting fp16_patch.loss_scaling.{key}={settings[key]!r}",
                    allowed=", ".join(known),
                    next_step="correct the spelling or remove the override",
                )
        return cls(**settings)

    def as_dict(self) -> dict[str, float | int]:
        """Keyword arguments for ``GradScaler``."""
        return asdict(self)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise _refuse(name, value, "a finite number")
    return float(value)


def _refuse(name: str, value: object, allowed: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"fp16_patch.loss_scaling.{name}={value!r} cannot be used",
        allowed=allowed,
        next_step=f"set fp16_patch.loss_scaling.{name} to an allowed value, or remove it to get the default",
    )
