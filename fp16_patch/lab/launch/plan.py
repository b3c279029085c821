# SPDX-License-Identifier: Apache-2.0
"""Plan a run: the recipe at its scale, the framework, each arm's command, and the checks before it starts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.lab.arms import preflight
from fp16_patch.lab.arms.command import WORLD, Command, Job
from fp16_patch.lab.arms.overrides import key_value
from fp16_patch.lab.comparison.expectations import check_metrics
from fp16_patch.lab.launch import check
from fp16_patch.lab.loading.load import load_at_scale
from fp16_patch.lab.recipes.algorithms import algorithms
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.trainers import TRAINERS, Trainer
from fp16_patch.precision import setting_names

_LOSS_SCALING = "fp16_patch.loss_scaling."


@dataclass(frozen=True)
class Plan:
    """The arms to run in ``out``, each with its job and command. ``text`` is the recipe as the run keeps it."""

    recipe: Recipe
    text: str
    framework: str
    out: Path
    jobs: dict[str, Job]
    commands: dict[str, Command]

    @property
    def trainer(self) -> Trainer:
        """The framework as the launcher uses it."""
        return TRAINERS[self.framework]

    def toy_task_command(self) -> str | None:
        """Return the bash command that makes the recipe's toy task, or None if it has none."""
        name, folder = self.recipe.world, str(self.out / WORLD)
        make = [sys.executable, "-m", "fp16_patch.lab.toy", "--world", str(name), "--out", folder]
        return shlex.join(make) if name else None

    def check(self, say: Callable[[str], None]) -> None:
        """Raise :class:`Fp16PatchError` with everything that is missing here, or else that the framework refuses."""
        needs = self.trainer.needs(next(iter(self.commands.values())))
        if problems := list(preflight.lacking(self.recipe, needs, self.out / WORLD)):
            raise combine_errors(problems)
        say(f"composing {self.framework}'s configuration: {', '.join(self.commands)}")
        if problems := check.refused(self.framework, self.commands):
            raise combine_errors(problems)


def make_plan(
    path: Path,
    out: Path,
    *,
    framework: str | None = None,
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    scale: str | None = None,
    module: str | None = None,
) -> Plan:
    """Return what ``run_recipe`` would start; write and start nothing. Raises :class:`Fp16PatchError`."""
    recipe, text = load_at_scale(path, scale)
    check_metrics(recipe)
    framework, out = _framework(recipe, framework), out.resolve()
    for arm in arms:
        if arm not in recipe.arms:
            raise Fp16PatchError(
                f"--arm {arm}: {recipe.name} has no such arm",
                code="unknown-arm",
                allowed=", ".join(recipe.arms),
                next_step="choose one of these; repeat --arm for several",
            )
    chosen = list(arms) or list(recipe.arms)
    _check_overrides(framework, overrides)
    _check_loss_scaling({arm: recipe.arms[arm].precision for arm in chosen}, overrides)
    jobs = {arm: Job(recipe, arm, out, tuple(overrides)) for arm in chosen}
    commands = {arm: TRAINERS[framework].build_command(job, module) for arm, job in jobs.items()}
    return Plan(recipe, text, framework, out, jobs, commands)


def _framework(recipe: Recipe, wanted: str | None) -> str:
    if wanted is None or wanted in recipe.frameworks:
        return wanted or recipe.frameworks[0]
    algorithm = algorithms().get(recipe.algorithm.name)
    why = algorithm.not_on.get(wanted) if algorithm and recipe.hyperparameters else None
    raise Fp16PatchError(
        f"{recipe.name} does not run on {wanted!r}" + (f": {why}" if why else ""),
        code="framework-not-in-recipe",
        allowed=", ".join(recipe.frameworks),
        next_step="fp16-patch recipes list shows the frameworks of each recipe",
    )


def _check_overrides(framework: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, value = key_value(override)
        if "=" not in override or not key:
            what = f"the override {override!r} has no {'value' if key else 'key'}"
            raise Fp16PatchError(what, code="setting-unreadable", allowed="KEY=VALUE", next_step="give both")
        for error in TRAINERS[framework].check(key, value):
            raise error.prefixed(override)
    setting_names.check_overrides(overrides)


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
