# SPDX-License-Identifier: Apache-2.0
"""Compose recipes against the installed frameworks' own configuration: no GPU, no run, no network."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import Command, Job
from fp16_patch.lab.comparison.expectations import check_metrics
from fp16_patch.lab.launch.composer import Composer
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


def check(paths: Iterable[Path]) -> Iterator[Checked]:
    """Yield a finding for every scale, framework and arm of each recipe, a single one if a file is not a recipe."""
    with Composer() as composer:
        for path in paths:
            yield from _check(path, composer)


def _check(path: Path, composer: Composer) -> Iterator[Checked]:
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
                yield Checked(path.stem, scale, framework, arm, _problem(recipe, framework, arm, composer))


def refused(framework: str, commands: Mapping[str, Command]) -> list[Fp16PatchError]:
    """Return the errors of the framework's own configuration for these arms, each error once."""
    problems: dict[str, tuple[list[str], Fp16PatchError]] = {}
    with Composer() as composer:
        for arm, command in commands.items():
            if error := composer.refusal(framework, command):
                problems.setdefault(str(error), ([], error))[0].append(arm)
    return [error.prefixed(", ".join(arms)) for arms, error in problems.values()]


def _problem(recipe: Recipe, framework: str, arm: str, composer: Composer) -> str | None:
    job = Job(recipe, arm, Path(tempfile.gettempdir()) / "runs")
    try:
        error = composer.refusal(framework, TRAINERS[framework].build_command(job))
    except Fp16PatchError as refused:
        error = refused
    return None if error is None else _words(error)


def _words(error: Fp16PatchError) -> str:
    return str(error).removeprefix("fp16_patch: ")
