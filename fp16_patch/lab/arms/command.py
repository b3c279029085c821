# SPDX-License-Identifier: Apache-2.0
"""Build the command of one arm, its environment, and both as text for a shell."""

from __future__ import annotations

import importlib
import itertools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp16_patch.lab.cpu import rounded_rollout
from fp16_patch.lab.recipes.algorithms import Definition, algorithms
from fp16_patch.lab.recipes.hyperparameters import values
from fp16_patch.lab.recipes.schema import Arm, OtherData, Recipe

if TYPE_CHECKING:
    from fp16_patch.lab.toy import ToyTask

WORLD = "world"
"""Folder of a run directory: the model and data that the run makes itself."""
EARLIER = "earlier"
"""Folder of a run directory: earlier runs of its arms."""
MATH_REWARD = Path(__file__).parents[1] / "rewards" / "math_reward.py"


@dataclass(frozen=True)
class ArmFiles:
    """The files in an arm's folder of the run directory."""

    folder: Path

    @property
    def metrics(self) -> Path:
        """The metrics of each step, as JSON lines."""
        return self.folder / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """The output of the trainer."""
        return self.folder / "train.log"

    @property
    def precision_report(self) -> Path:
        """The precision report."""
        return self.folder / "precision_report.json"

    @property
    def overflow_report(self) -> Path:
        """The report of a run that stopped after too many skipped updates."""
        return self.folder / "overflow_report_actor.json"

    @property
    def script(self) -> Path:
        """The command, for bash."""
        return self.folder / "command.sh"

    @property
    def settings(self) -> Path:
        """The settings as data."""
        return self.folder / "settings.json"

    @property
    def result(self) -> Path:
        """The launcher's record, written at the end."""
        return self.folder / "result.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"


def world_in(out: Path, recipe: Recipe) -> ToyTask | None:
    """Return the world of a run directory, built or not; None where the recipe has none."""
    if recipe.world is None:
        return None
    from fp16_patch.lab.toy import ToyTask

    return ToyTask(out / WORLD, {})


@dataclass(frozen=True)
class Job:
    """One arm to run: the recipe, its files, and the user's ``KEY=VALUE``."""

    recipe: Recipe
    arm_name: str
    files: ArmFiles
    world: ToyTask | None = None
    overrides: tuple[str, ...] = ()

    @property
    def arm(self) -> Arm:
        """The arm's part of the recipe."""
        return self.recipe.arms[self.arm_name]

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
        """The arm's algorithm; None where the recipe gives the framework's own options."""
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
        data = self.recipe.data
        paths = {
            "model.path": self.recipe.model.path,
            "data.train": other.train or data.train,
            "data.val": other.val or data.val,
            "data.reward": other.reward or data.reward,
        }
        return {
            names[place]: path.format(world=self.world, math_reward=MATH_REWARD) if "{" in path else path
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
