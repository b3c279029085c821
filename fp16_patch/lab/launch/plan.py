# SPDX-License-Identifier: Apache-2.0
"""What a run would start: the recipe at its scale, the framework, each arm's command, and what speaks against them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.lab.comparison.expectations import check_metrics
from fp16_patch.lab.launch import check, preflight
from fp16_patch.lab.launch.command import WORLD, ArmFiles, Command, Job, world_in
from fp16_patch.lab.recipes.algorithms import algorithms
from fp16_patch.lab.recipes.load import load, scale_of
from fp16_patch.lab.recipes.overrides import key_value
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.trainers import TRAINERS

_LOSS_SCALING = "fp16_patch.loss_scaling."


def choose(
    path: Path, framework: str | None, arms: Sequence[str], overrides: Sequence[str], scale: str | None
) -> tuple[Recipe, str, list[str]]:
    """The recipe at its scale, the framework and the arms to run. Raises :class:`Fp16PatchError`."""
    recipe = load(path, scale_of(path, scale))
    check_metrics(recipe)
    framework = _framework(recipe, framework)
    for arm in arms:
        if arm not in recipe.arms:
            raise Fp16PatchError(
                f"{recipe.name} has no arm {arm!r}", code="unknown-arm", allowed=", ".join(recipe.arms)
            )
    chosen = list(arms) or list(recipe.arms)
    _check_overrides(framework, overrides)
    _check_loss_scaling({arm: recipe.arms[arm].precision for arm in chosen}, overrides)
    return recipe, framework, chosen


def planned(
    recipe: Recipe, framework: str, arms: Sequence[str], out: Path, overrides: Sequence[str], module: str | None = None
) -> dict[str, tuple[Job, Command]]:
    """Each arm with its command in the run directory ``out``. Nothing is written."""
    trainer, world = TRAINERS[framework], world_in(out, recipe)
    jobs = {arm: Job(recipe, arm, ArmFiles(out / arm), world, tuple(overrides)) for arm in arms}
    return {arm: (job, trainer.build_command(job, module or trainer.MODULE)) for arm, job in jobs.items()}


def commands(
    path: Path,
    out: Path,
    *,
    framework: str | None = None,
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    scale: str | None = None,
) -> dict[str, str]:
    """Arm -> its command for a shell, as ``run_recipe`` would start it. Nothing is checked, written or started."""
    recipe, framework, chosen = choose(path, framework, arms, overrides, scale)
    found = planned(recipe, framework, chosen, out.resolve(), overrides)
    return {arm: command.as_shell() for arm, (_, command) in found.items()}


def world_command(path: Path, out: Path, scale: str | None) -> str | None:
    """What makes the recipe's world in ``out``, for bash; None where it has none."""
    world = load(path, scale_of(path, scale)).world
    make = [sys.executable, "-m", "fp16_patch.lab.toy", "--world", str(world), "--out", str(out.resolve() / WORLD)]
    return shlex.join(make) if world else None


def check_commands(
    recipe: Recipe, framework: str, commands: Mapping[str, Command], out: Path, say: Callable[[str], None]
) -> None:
    """Raises :class:`Fp16PatchError` with everything that is missing here, or else that the framework refuses."""
    needs = TRAINERS[framework].needs(next(iter(commands.values())))
    if problems := list(preflight.lacking(recipe, needs, out / WORLD if recipe.world else None)):
        raise several(problems)
    say(f"composing {framework}'s configuration: {', '.join(commands)}")
    if problems := check.refused(framework, commands):
        raise several(problems)


def _framework(recipe: Recipe, wanted: str | None) -> str:
    """The one to run on. Raises :class:`Fp16PatchError` when the recipe does not run on the wanted one."""
    if wanted is None or wanted in recipe.frameworks:
        return wanted or recipe.frameworks[0]
    algorithm = algorithms().get(recipe.algorithm.name)
    why = algorithm.not_on.get(wanted) if algorithm and recipe.hyperparameters else None
    raise Fp16PatchError(
        f"{recipe.name} does not run on {wanted!r}" + (f": {why}" if why else ""),
        code="framework-not-in-recipe",
        allowed=", ".join(recipe.frameworks),
        next_step="fp16-patch recipes list shows what runs where",
    )


def _check_overrides(framework: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, value = key_value(override)
        if "=" not in override or not key:
            raise Fp16PatchError(
                f"the override {override!r} has no {'value' if key else 'key'}",
                code="setting-unreadable",
                allowed="KEY=VALUE",
            )
        for error in TRAINERS[framework].check(key, value):
            raise error.prefixed(override)


def _check_loss_scaling(precisions: Mapping[str, str], overrides: Sequence[str]) -> None:
    others = [arm for arm, precision in precisions.items() if precision != "fp16"]
    for override in overrides:
        if others and key_value(override)[0].startswith(_LOSS_SCALING):
            fp16 = [f"--arm {arm}" for arm in precisions if arm not in others]
            raise Fp16PatchError(
                f"{override}: {', '.join(others)} trains in another precision than FP16, and has no loss scale",
                code="setting-refused",
                next_step=" ".join(["run FP16 alone:", *fp16]) if fp16 else f"remove {override}",
            )
