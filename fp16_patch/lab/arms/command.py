# SPDX-License-Identifier: Apache-2.0
"""Build the command of one arm, its environment, and both as text for a shell."""

from __future__ import annotations

import importlib
import itertools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp16_patch.lab.cpu import rounded_rollout
from fp16_patch.lab.recipes.algorithms import Definition, algorithms
from fp16_patch.lab.recipes.hyperparameters import values
from fp16_patch.lab.recipes.schema import Arm, OtherData, Recipe
from fp16_patch.lab.toy import ToyTask

WORLD = "world"
"""Folder of a run directory: the model and data of the toy task, which the run makes itself."""
EARLIER = "earlier"
"""Folder of a run directory: earlier runs of its arms."""
MATH_REWARD = Path(__file__).parents[1] / "rewards" / "math_reward.py"


class ArmFiles:
    """The files in an arm's folder of the run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        """The metrics of each step, as JSON lines."""
        self.log = folder / "train.log"
        """The output of the trainer."""
        self.precision_report = folder / "precision_report.json"
        self.overflow_report = folder / "overflow_report_actor.json"
        """The report of a run that stopped after too many skipped updates."""
        self.script = folder / "command.sh"
        """The command, for bash."""
        self.settings = folder / "settings.json"
        """The settings as data."""
        self.result = folder / "result.json"
        """The launcher's record, written at the end."""
        self.checkpoints = folder / "checkpoints"


@dataclass(frozen=True)
class Job:
    """One arm to run in the run directory ``out``, with the user's ``KEY=VALUE``."""

    recipe: Recipe
    arm_name: str
    out: Path
    overrides: tuple[str, ...] = ()

    @property
    def arm(self) -> Arm:
        """The arm's part of the recipe."""
        return self.recipe.arms[self.arm_name]

    @property
    def files(self) -> ArmFiles:
        """The files of the arm."""
        return ArmFiles(self.out / self.arm_name)

    @property
    def platform(self) -> Any:
        """The settings module of the recipe's platform, or None."""
        if self.recipe.platform is None:
            return None
        return importlib.import_module(f"fp16_patch.lab.{self.recipe.platform}.settings")

    @property
    def instruments(self) -> dict[str, str]:
        """Variables for the experiment of the arm on its rollout."""
        bits = self.arm.rollout_significand
        return {} if bits is None else {rounded_rollout.VARIABLE: str(bits)}

    @property
    def algorithm(self) -> Definition | None:
        """The arm's algorithm; None if the recipe gives the framework's own options."""
        if not self.recipe.hyperparameters:
            return None
        return algorithms()[self.arm.algorithm or self.recipe.algorithm.name]

    @property
    def hyperparameters(self) -> dict[str, object]:
        """The value of each hyperparameter; the arm's own replace the recipe's."""
        return values(self.recipe.hyperparameters, self.arm.hyperparameters)

    def places(self, names: Mapping[str, str], other: OtherData) -> dict[str, object]:
        """Return the option and path of each place in ``names`` that the recipe has; placeholders are filled in.

        ``names`` maps a place, such as ``data.train``, to the framework's option. ``other`` replaces the recipe's data.
        """
        data, task = self.recipe.data, ToyTask(self.out / WORLD, {})
        paths = {
            "model.path": self.recipe.model.path,
            "data.train": other.train or data.train,
            "data.val": other.val or data.val,
            "data.reward": other.reward or data.reward,
        }
        return {
            names[place]: path.format(world=task, math_reward=MATH_REWARD) if "{" in path else path
            for place, path in paths.items()
            if path is not None
        }


@dataclass(frozen=True)
class Command:
    """A command. A part is an option with its values; ``environment`` is added to the caller's."""

    parts: tuple[tuple[str, ...], ...]
    environment: Mapping[str, str]
    total_steps: int | None

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words of the command."""
        return tuple(itertools.chain.from_iterable(self.parts))

    @property
    def options(self) -> dict[str, str]:
        """The options as text, without leading ``+`` or ``--``; an option without a value is ``true``."""
        options = {}
        for first, *more in (part for part in self.parts if "-m" not in part):  # without the interpreter's part
            key, equals, value = first.partition("=")
            options[key.lstrip("+-")] = value.strip("'") if equals else " ".join(more) or "true"
        return options

    def as_shell(self) -> str:
        """Return the command with one part per line, quoted for bash."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        return "\n".join([*exports, " \\\n  ".join(map(shlex.join, self.parts))])
