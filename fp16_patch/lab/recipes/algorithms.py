# SPDX-License-Identifier: Apache-2.0
"""Read the algorithms of the paper from ``recipes/shared/algorithms.yaml``."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fp16_patch.lab.recipes.builtin import folder
from fp16_patch.lab.recipes.compose import read
from fp16_patch.lab.recipes.parse import build

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Definition:
    """An algorithm: what it computes, the hyperparameters it ``needs``, and the options of each framework for it."""

    about: str
    advantage: str
    loss: str
    needs: tuple[str, ...]
    verl: dict[str, object] | None = None
    openrlhf: dict[str, object] | None = None
    not_on: dict[str, str] = field(default_factory=dict)
    otherwise_on: dict[str, str] = field(default_factory=dict)
    """For a framework, how its loss differs from ``loss``."""

    def options(self, framework: str, hyperparameters: Mapping[str, object]) -> dict[str, object]:
        """Return the options of a framework that has the algorithm, with the hyperparameters filled in."""
        options: dict[str, object] = getattr(self, framework)
        return {key: _filled(value, hyperparameters) for key, value in options.items()}


@dataclass(frozen=True)
class _File:
    common: object
    algorithms: dict[str, Definition]


@functools.cache
def algorithms() -> Mapping[str, Definition]:
    """Return each algorithm's definition by its name."""
    file = folder() / "shared" / "algorithms.yaml"
    return build(_File, read(file), source=file.name).algorithms


def _filled(value: Any, hyperparameters: Mapping[str, object]) -> object:
    # "{name}" is the value itself, "1e-9_{name}" is text with the value in it.
    if isinstance(value, list):
        return [_filled(item, hyperparameters) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _PLACE.fullmatch(value):
        return hyperparameters[whole[1]]
    return _PLACE.sub(lambda place: f"{hyperparameters[place[1]]:g}", value)
