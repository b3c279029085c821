# SPDX-License-Identifier: Apache-2.0
"""The settings of runs, out of the commands they were started with, and where they differ though they should not.

Arms of one run may differ in what their recipe has them differ in. Runs of one recipe may differ in their seeds
besides. Imported runs keep no settings; on different frameworks only the recipe's hyperparameters have one name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fp16_patch.lab.launch.command import MATH_REWARD, ArmFiles, Job, world_in
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.trainers import TRAINERS

_PLACE = Path("/the-run")  # stands for the run directory, so that runs in different places compare
_STARTS_A_PROGRAM = " -m "
_OF_THE_PLACE = ("export RAY_TMPDIR",)
"""Made out of where the run directory lies, in other words than its path."""
_VERIFIER = re.compile(rf"/[^\s=]*/{re.escape(MATH_REWARD.name)}")


class Run(NamedTuple):
    """What is compared. ``label`` is what tells it from the others; ``folder`` is None where it is imported."""

    label: str
    folder: Path | None
    recipe: Recipe
    arms: Sequence[ArmRun]


class Difference(NamedTuple):
    name: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.name}: {self.here} and {self.there}"


def settings(shell: str) -> dict[str, str]:
    """A saved command, which has a setting a line; a line without ``=`` is one by itself."""
    lines = (line.removesuffix("\\").strip() for line in shell.splitlines())
    return {name: value or "given" for name, _, value in (line.partition("=") for line in lines)}


def placeless(shell: str, arm: str) -> dict[str, str]:
    """The settings in an arm's command, wherever it ran: it says itself where its metrics went."""
    ending = f"/{arm}/metrics.jsonl"
    place = next((v.removesuffix(ending) for v in _read(shell).values() if v.endswith(ending)), None)
    return _read(shell.replace(place, str(_PLACE)) if place else shell)


def between_runs(runs: Sequence[Run]) -> list[str]:
    """One line for each setting in which several runs differ and should not; none where all is well."""
    return [
        f"{one.label} and {other.label}: {difference}"
        for one, other in itertools.combinations(runs, 2)
        for difference in _between(one, other)
    ]


def between_arms(run: Run) -> list[str]:
    """One line for each setting in which the arms of a run differ and should not; none where all is well."""
    started = [arm for arm in run.arms if arm.command]
    found = []
    for arm in started[1:]:
        meant = {difference.name for difference in _differ(_meant(run.recipe, started[0]), _meant(run.recipe, arm))}
        found += [
            f"{started[0].name} and {arm.name}: {difference}"
            for difference in _differ(_ran(started[0]), _ran(arm))
            if difference.name not in meant
        ]
    return found


def departures(recipe: Recipe, arm: ArmRun) -> list[str]:
    """What an arm was started with otherwise than its recipe says, but for seeds; the recipe's value comes first."""
    if not arm.command:
        return []
    return [str(difference) for difference in _differ(_meant(recipe, arm), _ran(arm)) if not _is_seed(difference)]


def _between(one: Run, other: Run) -> Iterator[Difference]:
    if one.arms[0].framework != other.arms[0].framework:
        if one.recipe.name == other.recipe.name:
            yield from _differ(_hyperparameters(one.recipe), _hyperparameters(other.recipe))
        return
    if one.recipe.name != other.recipe.name:
        yield Difference("recipe", one.recipe.name, other.recipe.name)
        return
    others = {arm.name: arm for arm in other.arms if arm.command}
    for arm in (arm for arm in one.arms if arm.command and arm.name in others):
        for difference in _differ(_ran(arm), _ran(others[arm.name])):
            if not _is_seed(difference):
                yield difference._replace(name=f"{arm.name}: {difference.name}")


def _is_seed(difference: Difference) -> bool:
    return difference.name.endswith("seed")


def _ran(arm: ArmRun) -> dict[str, str]:
    return placeless(arm.command, arm.name)


def _meant(recipe: Recipe, arm: ArmRun) -> dict[str, str]:
    """The settings that the recipe kept with the run gives the arm."""
    trainer = TRAINERS[arm.framework]
    job = Job(recipe, arm.name, ArmFiles(_PLACE / arm.name), world_in(_PLACE, recipe))
    return _read(trainer.build_command(job, trainer.MODULE).as_shell())


def _read(shell: str) -> dict[str, str]:
    """Without the lines that name an interpreter and a module, a shell's quotes, and where this package lies."""
    lines = "\n".join(line for line in shell.splitlines() if _STARTS_A_PROGRAM not in line)
    found = settings(_VERIFIER.sub(MATH_REWARD.name, lines.replace("'", "")))
    return {name: value for name, value in found.items() if name not in _OF_THE_PLACE}


def _hyperparameters(recipe: Recipe) -> dict[str, str]:
    return {name: str(setting.value) for name, setting in recipe.hyperparameters.items()}


def _differ(here: Mapping[str, str], there: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(name, here.get(name, "not set"), there.get(name, "not set"))
        for name in dict.fromkeys((*here, *there))
        if here.get(name) != there.get(name)
    ]
