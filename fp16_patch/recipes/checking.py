# SPDX-License-Identifier: Apache-2.0
"""Compose recipes against the installed frameworks' own configuration: no GPU, no run, no network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.recipes.command import ArmFiles, Command, Job, world_in
from fp16_patch.recipes.loading import load, scales
from fp16_patch.recipes.schema import Recipe
from fp16_patch.recipes.trainers import TRAINERS


@dataclass(frozen=True)
class Checked:
    """One arm of a recipe at one scale on one framework, and why it would not start; ``problem`` None: it would."""

    recipe: str
    scale: str
    framework: str
    arm: str
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(path: Path) -> Iterator[Checked]:
    """Every scale, framework and arm of the recipe. Raises :class:`Fp16PatchError` when the file itself is wrong."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # whether the hub knows a model is not asked here
    for scale in scales(path):
        recipe = load(path, scale)
        for framework in recipe.frameworks:
            for arm in recipe.arms:
                yield Checked(path.stem, scale, framework, arm, _problem(recipe, framework, arm))


def command(recipe: Recipe, framework: str, arm: str, folder: Path) -> Command:
    """The arm's command, for a run in ``folder``; the world need not be there."""
    trainer, files = TRAINERS[framework], ArmFiles(folder / arm)
    return trainer.build_command(Job(recipe, arm, files, world_in(folder, recipe)), trainer.MODULE)


def _problem(recipe: Recipe, framework: str, arm: str) -> str | None:
    try:
        TRAINERS[framework].composed(command(recipe, framework, arm, Path(tempfile.gettempdir()) / "runs"))
    except Fp16PatchError as error:
        return str(error).removeprefix("fp16_patch: ")
    return None
