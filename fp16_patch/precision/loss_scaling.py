# SPDX-License-Identifier: Apache-2.0
"""Define and validate the settings of dynamic loss scaling, under torch's names where torch has one."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fp16_patch.errors import Fp16PatchError

LIMITS = (2.0**-24, 2.0**31)
"""Smallest and largest scale by which FP32 can multiply a loss and divide a gradient without losing either."""


@dataclass(frozen=True)
class LossScaling:
    """The settings of a loss scaler, with one meaning on every engine.

    The first four are arguments of ``torch.amp.GradScaler``; the others bound it.

    Raises:
        Fp16PatchError: If torch would accept a value and then scale wrongly with it.
    """

    init_scale: float = 65536.0
    """Torch's default, and the paper's value on FSDP."""
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 400
    """Updates in a row without an overflow before the scale grows. The paper's value on FSDP (verl_fp16.patch in
    sail-sg/Precision-RL)."""
    hysteresis: int = 1
    """Overflows before the scale backs off; reset when the scale grows. 1 is torch's behaviour."""
    min_scale: float = 1.0
    """Lower bound of the scale. Megatron's and DeepSpeed's default; torch has none, and reaches 0."""
    max_scale: float = 2.0**31
    """Upper bound of the scale: keeps scale times loss well inside FP32. Torch has none."""
    max_consecutive_skips: int = 20
    """Skipped updates in a row that stop the run. From 2**16 to min_scale=1 takes 16 backoffs; 4 spare."""
    max_skip_rate: float = 0.1
    """Share of the last ``skip_rate_window`` updates that may be skipped; more stop the run. The default allows 20 of
    200, as many as may be skipped in a row. ``max_consecutive_skips`` updates may be skipped at any rate."""
    skip_rate_window: int = 200
    """Updates over which ``max_skip_rate`` is taken."""

    def __post_init__(self) -> None:
        for name in ("init_scale", "growth_factor", "backoff_factor", "min_scale", "max_scale"):
            allowed = "a positive power of two, such as 65536, 2 or 0.5"
            value = _number(name, getattr(self, name), allowed)
            # Only powers of two multiply FP16 gradients without rounding them.
            if value <= 0 or math.frexp(value)[0] != 0.5:
                raise refuse(name, getattr(self, name), allowed)
            object.__setattr__(self, name, value)
        for name in ("growth_interval", "hysteresis", "max_consecutive_skips", "skip_rate_window"):
            allowed = "a whole number, 1 or more"
            count = _number(name, getattr(self, name), allowed)
            if not count.is_integer() or count < 1:
                raise refuse(name, getattr(self, name), allowed)
            object.__setattr__(self, name, int(count))
        allowed = "a share above 0 and at most 1; 1 allows any rate"
        rate = _number("max_skip_rate", self.max_skip_rate, allowed)
        if not 0 < rate <= 1:
            raise refuse("max_skip_rate", self.max_skip_rate, allowed)
        object.__setattr__(self, "max_skip_rate", rate)
        if self.growth_factor <= 1:
            raise refuse("growth_factor", self.growth_factor, "2 or more; max_scale=init_scale keeps it from growing")
        if self.backoff_factor >= 1:
            raise refuse("backoff_factor", self.backoff_factor, "a power of two below 1, such as 0.5")
        for name in ("init_scale", "min_scale", "max_scale"):
            value = getattr(self, name)
            if not LIMITS[0] <= value <= LIMITS[1]:
                raise refuse(name, value, "2**-24 to 2**31: below, gradients underflow; above, all overflow")
        if self.min_scale > self.max_scale:
            raise refuse("min_scale", self.min_scale, f"at most max_scale={self.max_scale:g}")
        if not self.min_scale <= self.init_scale <= self.max_scale:
            raise refuse("init_scale", self.init_scale, f"min_scale={self.min_scale:g} to max_scale={self.max_scale:g}")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> LossScaling:
        """Build from a configuration node.

        Raises:
            Fp16PatchError: If a key is unknown or a value is not allowed.
        """
        if not isinstance(settings, Mapping):
            raise Fp16PatchError(
                f"fp16_patch.loss_scaling={as_typed(settings)} is not a group of settings",
                code="wrong-type",
                allowed=", ".join(f"fp16_patch.loss_scaling.{field.name}" for field in fields(cls)),
                next_step="set one of them, or remove the override",
            )
        check_keys(cls, settings, "fp16_patch.loss_scaling")
        return cls(**settings)

    @property
    def max_skips_in_window(self) -> int:
        """Return the number of the last ``skip_rate_window`` updates that may be skipped."""
        return max(math.floor(round(self.max_skip_rate * self.skip_rate_window, 6)), self.max_consecutive_skips)

    def warnings(self) -> list[str]:
        """Return a warning if ``max_consecutive_skips`` allows more skipped updates than ``max_skip_rate`` does."""
        share, window, allowed = self.max_skip_rate, self.skip_rate_window, self.max_skips_in_window
        if share == 1 or math.floor(round(share * window, 6)) >= allowed:
            return []
        effect = f"a rate above {allowed} of {window}" if allowed < window else "no rate"
        return [
            f"fp16_patch.loss_scaling.max_skip_rate={share:g} of skip_rate_window={window} updates is "
            f"{share * window:g}, and max_consecutive_skips={self.max_consecutive_skips} may be skipped at any rate: "
            f"{effect} stops the run. Set a larger skip_rate_window or a smaller max_consecutive_skips"
        ]

    def as_dict(self) -> dict[str, float | int]:
        """Return the configuration node, ready for JSON: the inverse of :meth:`from_mapping`."""
        return asdict(self)


def check_keys(cls: type[Any], settings: Mapping[str, Any], group: str) -> None:
    """Raise :class:`Fp16PatchError` if a key of ``settings`` is not a field of the dataclass ``cls``."""
    known = [field.name for field in fields(cls)]
    for key in settings:
        if key not in known:
            raise Fp16PatchError(
                f"unknown setting {group}.{key}={as_typed(settings[key])}",
                code="unknown-setting",
                allowed=", ".join(known),
                next_step="correct the spelling or remove the override",
            )


def as_typed(value: object) -> str:
    """Return a value as a command line has it: ``null`` and ``true`` in place of ``None`` and ``True``."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _number(name: str, value: object, allowed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise refuse(name, value, allowed)
    return float(value)


def refuse(name: str, value: object, allowed: str, group: str = "fp16_patch.loss_scaling") -> Fp16PatchError:
    """Return the error for a setting whose value is not allowed."""
    return Fp16PatchError(
        f"{group}.{name}={as_typed(value)} cannot be used",
        code="value-not-allowed",
        allowed=allowed,
        next_step=f"set {group}.{name} to an allowed value, or remove it to get the default",
    )
