# SPDX-License-Identifier: Apache-2.0
"""Compare a configuration with the table of settings: find what the flag changes, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.command_line import explicit_keys
from fp16_patch.frameworks.verl.config.setting import MISSING, Setting, value_of


@dataclass(frozen=True)
class Change:
    """One key as it was and as it will be."""

    key: str
    before: Any
    after: Any


def plan(config: DictConfig, settings: Iterable[Setting], precision: str) -> tuple[list[Change], list[Fp16PatchError]]:
    """Return what to change, and what is refused. Changes nothing.

    The flag replaces only what verl ships. A value is the user's own if its key is among the command line's overrides,
    or if verl does not ship it.
    """
    explicit = explicit_keys(config)
    changes, problems = [], []
    for setting in settings:
        before = value_of(config, setting.key, MISSING)
        if setting.accepts(before):
            continue
        if before is MISSING:
            before = _value_in_place_of(config, setting.key.rpartition(".")[0])
        if setting.sets is MISSING or setting.key in explicit or before not in setting.stock:
            problems.append(setting.refusal(None if before is MISSING else before, precision))
        else:
            changes.append(Change(setting.key, None if before is MISSING else before, setting.sets))
    return changes, problems


def rewrite(config: DictConfig, changes: list[Change]) -> None:
    """Apply ``changes`` in place."""
    with open_dict(config):
        for change in changes:
            OmegaConf.update(config, change.key, change.after, force_add=True)


def _value_in_place_of(config: DictConfig, section: str) -> Any:
    """Return the value that stands where a section belongs, such as ``mixed_precision=bf16``."""
    value = value_of(config, section, MISSING)
    return MISSING if isinstance(value, DictConfig) else value
