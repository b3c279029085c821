# SPDX-License-Identifier: Apache-2.0
"""Keys of verl's configuration: their values, what the flag wants there, and how one is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fp16_patch.errors import Fp16PatchError

MISSING = object()
"""The value of a key that is not there."""


@dataclass(frozen=True)
class Rule:
    """One key, the value needed there, what verl ships for it (may be replaced), why, and what asks for it."""

    key: str
    value: Any
    stock: tuple[Any, ...]
    why: str = "the flag sets it"
    asked_by: str | None = None
    """None: the flag."""


def value_of(config: DictConfig, key: str) -> Any:
    """Return the value of a dotted key, or None."""
    return OmegaConf.select(config, key, default=None, throw_on_missing=False)


def refusal(key: str, value: object, why: str, allowed: str, next_step: str) -> Fp16PatchError:
    """Return the error for a setting that is not allowed: why, and what is."""
    return Fp16PatchError(f"{key}={value}: {why}", code="setting-refused", allowed=allowed, next_step=next_step)
