# SPDX-License-Identifier: Apache-2.0
"""Compare a configuration with the table of settings: find what the flag changes, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.command_line import explicit_keys
from fp16_patch.frameworks.verl.config.setting import MISSING, Setting, value_of
from fp16_patch.precision import Precision, is_dtype


@dataclass(frozen=True)
class Change:
    """One key as it was and as it will be."""

    key: str
    before: Any
    after: Any
    overwritten: bool = False
    """Whether ``before`` is the user's own."""

    @property
    def line(self) -> str:
        """The change as logs show it."""
        return f"{self.key}: {self.before} -> {self.after}{' (overwritten)' if self.overwritten else ''}"


def plan(
    config: DictConfig, settings: Iterable[Setting], precision: Precision
) -> tuple[list[Change], list[Fp16PatchError]]:
    """Return what to change, and what is refused. Changes nothing.

    The flag replaces what verl ships. A value is the user's own if its key is among the command line's overrides, or
    if verl does not ship it. With ``precision.overwrite`` the flag replaces the user's own dtypes too.
    """
    explicit = explicit_keys(config)
    changes: list[Change] = []
    problems: list[tuple[str, Fp16PatchError]] = []
    for setting in settings:
        before = value_of(config, setting.key, MISSING)
        if setting.accepts(before):
            continue
        if before is MISSING:
            before = _value_in_place_of(config, setting.key.rpartition(".")[0])
        shown = None if before is MISSING else before
        if setting.sets is not MISSING and setting.key not in explicit and before in setting.stock:
            changes.append(Change(setting.key, shown, setting.sets))
            continue
        overwritable = setting.is_dtype and _is_dtype_at(config, setting.key)
        if overwritable and precision.overwrite:
            changes.append(Change(setting.key, shown, setting.sets, overwritten=True))
        else:
            problems.append((setting.key, setting.refusal(before, precision.name, overwritable)))
    refused = [key for key, _ in problems]
    return changes, [error for key, error in problems if not _follows(config, key, refused)]


def rewrite(config: DictConfig, changes: list[Change]) -> None:
    """Apply ``changes`` in place."""
    with open_dict(config):
        for change in changes:
            OmegaConf.update(config, change.key, change.after, force_add=True)


def _follows(config: DictConfig, key: str, others: Iterable[str]) -> bool:
    """Return whether the value at ``key`` is that of one of the other keys (``${oc.select:other,default}``)."""
    section, _, name = key.rpartition(".")
    node = value_of(config, section)
    if not isinstance(node, DictConfig) or name not in node or not OmegaConf.is_interpolation(node, name):
        return False
    written = str(OmegaConf.to_container(node, resolve=False)[name])
    return any(other != key and re.search(rf"[:{{]{re.escape(other)}[,}}]", written) for other in others)


def _is_dtype_at(config: DictConfig, key: str) -> bool:
    """Return whether the user has a dtype at ``key``; vLLM's "auto" is that of the model's files."""
    value = value_of(config, key)
    return value == "auto" or is_dtype(value)


def _value_in_place_of(config: DictConfig, section: str) -> Any:
    """Return the value that stands where a section belongs, such as ``mixed_precision=bf16``."""
    value = value_of(config, section, MISSING)
    return MISSING if isinstance(value, DictConfig) else value
