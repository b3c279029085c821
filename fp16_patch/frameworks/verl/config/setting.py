# SPDX-License-Identifier: Apache-2.0
"""One row of the tables of settings: a key of verl's configuration, what the flag sets or allows there, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision import OVERWRITE_STEP, is_dtype, short_name


class _Missing(Enum):
    """An enumeration, so that a copy of the value is the value."""

    UNSET = "unset"

    def __str__(self) -> str:
        return str(self.value)


MISSING: Any = _Missing.UNSET
"""The value of a key that is not in the configuration. It prints as ``unset``."""

SECTIONS = {"actor": "actor_rollout_ref.actor", "reference": "actor_rollout_ref.ref", "critic": "critic"}
"""Role -> the section that holds its ``strategy``, its engines and, if it trains, its ``optim``."""


@dataclass(frozen=True)
class Setting:
    """One key. The flag sets ``sets`` there, or sets nothing and refuses every value that is not ``allowed``."""

    key: str
    why: str = "the flag sets it"
    sets: Any = MISSING
    stock: tuple[Any, ...] = ()
    """verl's own values, which the flag replaces. Any other value is the user's, and contradicts the flag."""
    allowed: tuple[Any, ...] = ()
    """Values that may stay, the recommended one first. None: unset. A dtype: any spelling. Empty: only ``sets``."""
    next_step: str | None = None
    """None: set the first allowed value, or remove the key."""
    when: bool = True
    """Whether the row applies to this run."""
    asked_by: str | None = None
    """What asks for ``sets``; None: the flag."""

    @property
    def is_dtype(self) -> bool:
        """Return whether the flag sets a dtype here, which may replace the user's own (``fp16_patch.overwrite``)."""
        return is_dtype(self.sets)

    def accepts(self, value: Any) -> bool:
        """Return whether ``value`` may stay as it is."""
        return any(_same(value, allowed) for allowed in (self.allowed or (self.sets,)))

    def refusal(self, value: Any, precision: str, overwritable: bool = False) -> Fp16PatchError:
        """Return the error for ``value``, which is not accepted and which the flag does not replace.

        ``overwritable``: whether ``fp16_patch.overwrite`` would replace it.
        """
        if self.sets is not MISSING:
            return Fp16PatchError(
                f"{self.key}={value} contradicts {self.asked_by or f'the flag ({precision})'}",
                code="setting-contradicts",
                allowed=f"{self.key}={self.sets}",
                next_step=f"remove {self.key} from your command or file ({self.why})"
                + (f", or {OVERWRITE_STEP}" if overwritable else ""),
            )
        allowed = " or ".join(str(one) for one in self.allowed if one is not None) or "unset"
        default = f"remove {self.key}" if self.allowed[0] is None else f"set {self.key}={self.allowed[0]}"
        return refusal(self.key, value, self.why, allowed, self.next_step or default)


def place_under(section: str, settings: Iterable[Setting]) -> list[Setting]:
    """Return the settings with ``section`` before their keys."""
    return [replace(setting, key=f"{section}.{setting.key}") for setting in settings]


def value_of(config: DictConfig, key: str, default: Any = None) -> Any:
    """Return the value of a dotted key, or ``default`` if it is missing."""
    return OmegaConf.select(config, key, default=default, throw_on_missing=False)


def refusal(key: str, value: object, why: str, allowed: str, next_step: str) -> Fp16PatchError:
    """Return the error for a value that is not allowed."""
    return Fp16PatchError(f"{key}={value}: {why}", code="setting-refused", allowed=allowed, next_step=next_step)


def _same(value: Any, wanted: Any) -> bool:
    if value is MISSING:
        return wanted is None
    if value == wanted or not isinstance(wanted, str):
        return bool(value == wanted)
    try:
        return short_name("", value) == short_name("", wanted)
    except Fp16PatchError:  # one of them is not a dtype
        return False
