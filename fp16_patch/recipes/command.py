# SPDX-License-Identifier: Apache-2.0
"""The exact command of one arm: overrides, environment, and both as text a user can paste into a shell."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fp16_patch.recipes.overrides import key_value, merge, render
from fp16_patch.recipes.schema import Recipe

if TYPE_CHECKING:
    from fp16_patch.toy import World

VERL_TRAINER = "verl.trainer.main_ppo"


@dataclass(frozen=True)
class ArmFiles:
    """What one arm leaves in its folder of the run directory."""

    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def precision_report(self) -> Path:
        return self.folder / "precision_report.json"

    @property
    def script(self) -> Path:
        return self.folder / "command.sh"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"


@dataclass(frozen=True)
class Command:
    """``environment`` holds only what is added to the caller's own."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    total_steps: int | None

    def as_shell(self) -> str:
        """One override a line, quoted for bash."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        head, *overrides = self._split()
        return "\n".join([*exports, " \\\n  ".join([head, *map(shlex.quote, overrides)])])

    def _split(self) -> list[str]:
        return [shlex.join(self.arguments[:3]), *self.arguments[3:]]


def build_command(
    recipe: Recipe,
    arm: str,
    files: ArmFiles,
    *,
    world: World | None,
    overrides: Sequence[str] = (),
    module: str = VERL_TRAINER,
) -> Command:
    """The command of ``arm``, writing into ``files``.

    Later sources win: platform, model and data, recipe, arm, ``overrides`` (Hydra syntax), and last the launcher's
    own keys.
    """
    chosen = recipe.arms[arm]
    environment, platform = _platform(recipe, files.folder)
    merged = merge(
        [
            platform,
            _places(recipe, world),
            [f"{key}={render(value)}" for key, value in recipe.verl.overrides.items()],
            [f"{key}={render(value)}" for key, value in chosen.overrides.items()],
            overrides,
            [
                f"trainer.experiment_name={render(f'{recipe.name}-{arm}')}",
                "trainer.logger=[console,file]",
                f"trainer.default_local_dir={render(str(files.folder / 'checkpoints'))}",
                f"hydra.run.dir={render(str(files.folder / 'hydra'))}",
                f"+precision@_global_={chosen.precision}",
                f"fp16_patch.report_path={render(str(files.precision_report))}",
            ],
        ]
    )
    steps = dict(map(key_value, merged)).get("trainer.total_training_steps", "")
    return Command(
        arguments=(sys.executable, "-m", module, *merged),
        environment={"VERL_FILE_LOGGER_PATH": str(files.metrics), "HYDRA_FULL_ERROR": "1", **environment},
        total_steps=int(steps) if steps.isdecimal() else None,
    )


def _places(recipe: Recipe, world: World | None) -> list[str]:
    """Where the model and the data are, and on how many ranks to run."""
    values: dict[str, object] = {
        "actor_rollout_ref.model.path": recipe.model.path,
        "data.train_files": recipe.data.train,
        "data.val_files": recipe.data.val,
    }
    if recipe.data.reward is not None:
        values["reward.custom_reward_function.path"] = recipe.data.reward
    if world is not None:
        values = {key: str(path).format(world=world) for key, path in values.items()}
    values |= {"trainer.n_gpus_per_node": recipe.hardware.ranks, "trainer.nnodes": recipe.hardware.nodes}
    return [f"{key}={render(value)}" for key, value in values.items()]


def _platform(recipe: Recipe, work_dir: Path) -> tuple[dict[str, str], list[str]]:
    if recipe.platform is None:
        return {}, []
    settings = importlib.import_module(f"fp16_patch.platforms.{recipe.platform}.settings")
    return settings.environment(work_dir), settings.verl_overrides(recipe.hardware.ranks)
