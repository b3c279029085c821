# SPDX-License-Identifier: Apache-2.0
"""Compose recipes against the installed frameworks' own configuration: no GPU, no run, no network."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import Command, Job
from fp16_patch.lab.comparison.expectations import check_metrics
from fp16_patch.lab.loading.load import load
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.trainers import TRAINERS


@dataclass(frozen=True)
class Checked:
    """One arm of a recipe at one scale on one framework; ``problem`` says why it would not start, if so."""

    recipe: str
    scale: str
    framework: str
    arm: str
    problem: str | None


def check(path: Path) -> Iterator[Checked]:
    """Yield a finding for every scale, framework and arm of the recipe, or a single one if the file is not a recipe."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # do not ask the hub for the model
    try:
        recipes = {scale: load(path, scale) for scale in load(path).scales}
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
    """Return the errors of the framework's own configuration for these arms, each error once.

    This runs in another process: what the framework imports (600 MB) would stay in memory during the run.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(_refused, framework, commands).result()


def _refused(framework: str, commands: Mapping[str, Command]) -> list[Fp16PatchError]:
    problems: dict[str, tuple[list[str], Fp16PatchError]] = {}
    for arm, command in commands.items():
        try:
            TRAINERS[framework].compose(command)
        except Fp16PatchError as error:
            problems.setdefault(str(error), ([], error))[0].append(arm)
    return [error.prefixed(", ".join(arms)) for arms, error in problems.values()]


def _problem(recipe: Recipe, framework: str, arm: str) -> str | None:
    trainer, job = TRAINERS[framework], Job(recipe, arm, Path(tempfile.gettempdir()) / "runs")
    try:
        trainer.compose(trainer.build_command(job))
    except Fp16PatchError as error:
        return _words(error)
    return None


def _words(error: Fp16PatchError) -> str:
    return str(error).removeprefix("fp16_patch: ")
