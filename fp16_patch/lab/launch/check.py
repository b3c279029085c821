# SPDX-License-Identifier: Apache-2.0
"""Compose recipes against the installed frameworks' own configuration: no GPU, no run, no network."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.comparison.expectations import check_metrics
from fp16_patch.lab.launch.command import ArmFiles, Command, Job, world_in
from fp16_patch.lab.recipes.load import load, scales
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.trainers import TRAINERS


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
    """Every scale, framework and arm of the recipe; one finding without these where the file is no recipe."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # whether the hub knows a model is not asked here
    try:
        recipes = {scale: load(path, scale) for scale in scales(path)}
        for recipe in recipes.values():
            check_metrics(recipe)
    except Fp16PatchError as error:
        yield Checked(path.stem, "-", "-", "-", _words(error))
        return
    for scale, recipe in recipes.items():
        for framework in recipe.frameworks:
            for arm in recipe.arms:
                yield Checked(path.stem, scale, framework, arm, _problem(recipe, framework, arm))


def refused(framework: str, commands: Mapping[str, Command]) -> list[Fp16PatchError]:
    """What the framework's own configuration has against the commands of these arms; one error for the same words.

    In a process of its own, so that what it imports, some 600 MB, does not stay for as long as a run takes.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(_refused, framework, commands).result()


def _refused(framework: str, commands: Mapping[str, Command]) -> list[Fp16PatchError]:
    problems: dict[str, tuple[list[str], Fp16PatchError]] = {}
    for arm, command in commands.items():
        try:
            TRAINERS[framework].composed(command)
        except Fp16PatchError as error:
            problems.setdefault(str(error), ([], error))[0].append(arm)
    return [error.prefixed(", ".join(arms)) for arms, error in problems.values()]


def command(recipe: Recipe, framework: str, arm: str, folder: Path) -> Command:
    """The arm's command, for a run in ``folder``; the world need not be there."""
    trainer, files = TRAINERS[framework], ArmFiles(folder / arm)
    return trainer.build_command(Job(recipe, arm, files, world_in(folder, recipe)), trainer.MODULE)


def _problem(recipe: Recipe, framework: str, arm: str) -> str | None:
    try:
        TRAINERS[framework].composed(command(recipe, framework, arm, Path(tempfile.gettempdir()) / "runs"))
    except Fp16PatchError as error:
        return _words(error)
    return None


def _words(error: Fp16PatchError) -> str:
    return str(error).removeprefix("fp16_patch: ")
