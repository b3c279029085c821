# SPDX-License-Identifier: Apache-2.0
"""Compare the settings of runs, and report those that should not differ.

Arms of one run may differ only in the keys their recipe varies. Runs of one recipe may also differ in their seeds.
Imported runs have no settings. Between frameworks only the recipe's hyperparameters share their names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fp16_patch.lab.arms.command import Job
from fp16_patch.lab.arms.settings import comparable, settings_of
from fp16_patch.lab.logs.runs import ArmRun, Run
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.trainers import TRAINERS

_ANY_FOLDER = Path("/the-run")


class Difference(NamedTuple):
    """A setting with its two values as text."""

    name: str
    value: str
    other: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value} and {self.other}"


def diff_settings(settings: Mapping[str, str], other: Mapping[str, str], missing: str = "not set") -> list[Difference]:
    """Return the settings that differ; ``missing`` is the value of one that is not there."""
    return [
        Difference(name, settings.get(name, missing), other.get(name, missing))
        for name in dict.fromkeys((*settings, *other))
        if settings.get(name) != other.get(name)
    ]


def diff_runs(run: Run, other: Run) -> Iterator[Difference]:
    """Yield the settings in which two runs differ and should not."""
    if run.arms[0].framework != other.arms[0].framework:
        if run.recipe.name == other.recipe.name:
            yield from diff_settings(_hyperparameters(run.recipe), _hyperparameters(other.recipe))
        return
    if run.recipe.name != other.recipe.name:
        yield Difference("recipe", run.recipe.name, other.recipe.name)
        return
    others = {arm.name: arm for arm in other.arms}
    for arm in run.arms:
        if arm.settings and arm.name in others and (settings := others[arm.name].settings):
            for difference in _without_seeds(diff_settings(arm.settings, settings)):
                yield difference._replace(name=f"{arm.name}: {difference.name}")


def describe_run_differences(runs: list[Run]) -> list[str]:
    """Return one line for each setting in which two of several runs differ and should not."""
    return [
        f"{run.label} and {other.label}: {difference}"
        for run, other in itertools.combinations(runs, 2)
        for difference in diff_runs(run, other)
    ]


def describe_arm_differences(run: Run) -> list[str]:
    """Return one line for each setting in which the arms of a run differ and should not."""
    lines: list[str] = []
    with_settings = [(arm.name, arm.settings, _recipe_settings(run.recipe, arm)) for arm in run.arms if arm.settings]
    for name, settings, in_recipe in with_settings[1:]:
        first, first_settings, first_in_recipe = with_settings[0]
        varied = {difference.name for difference in diff_settings(first_in_recipe, in_recipe)}
        differences = diff_settings(first_settings, settings)
        lines += [f"{first} and {name}: {difference}" for difference in differences if difference.name not in varied]
    return lines


def deviations(recipe: Recipe, arm: ArmRun) -> list[str]:
    """Return one line for each setting of an arm, except seeds, that is not as in its recipe, recipe's value first."""
    if not arm.settings:
        return []
    return list(map(str, _without_seeds(diff_settings(_recipe_settings(recipe, arm), arm.settings))))


def _without_seeds(differences: list[Difference]) -> list[Difference]:
    return [difference for difference in differences if not difference.name.endswith("seed")]


def _recipe_settings(recipe: Recipe, arm: ArmRun) -> dict[str, str]:
    """Return the settings that the recipe saved with the run gives the arm."""
    job = Job(recipe, arm.name, _ANY_FOLDER)
    command = TRAINERS[arm.framework].build_command(job)
    return comparable(settings_of(job.files, arm.framework, command))


def _hyperparameters(recipe: Recipe) -> dict[str, str]:
    return {name: str(setting.value) for name, setting in recipe.hyperparameters.items()}
