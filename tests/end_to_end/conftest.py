# SPDX-License-Identifier: Apache-2.0
"""Run the real trainers through the launcher that recipes use."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from shared_cache import make_once

from fp16_patch.lab.launch.run import ArmResult, run_recipe
from fp16_patch.lab.toy import ToyTask, untrained_toy_task

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    result: ArmResult
    log: str
    metrics: list[dict[str, Any]]
    report: dict[str, Any] | None

    def why(self) -> str:
        """For a failing assertion: how the run ended."""
        return f"{self.result.status}, exit code {self.result.exit_code}\n{self.result.error}\n{self.log[-4000:]}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> ToyTask:
    """Return the toy task with an untrained model, made once for all workers of the session."""
    folder = make_once(tmp_path_factory, "untrained", lambda folder: untrained_toy_task(folder / "world"))
    return ToyTask(folder / "world", json.loads((folder / "world" / "world.json").read_text()))


@pytest.fixture
def run_verl(world: ToyTask, tmp_path: Path) -> Callable[..., Run]:
    """Run the real verl with these overrides on ``ranks`` ranks."""
    places = {"MODEL": world.model, "TRAIN": world.train, "VAL": world.val, "REWARD": world.reward}
    return functools.partial(_run, "verl", places, tmp_path)


@pytest.fixture
def run_openrlhf(world: ToyTask, tmp_path: Path) -> Callable[..., Run]:
    """Run the real OpenRLHF likewise, with a reward that differs between the answers of an untrained policy."""
    reward = HERE / "openrlhf" / "saboteur" / "dense_reward.py"
    places = {"MODEL": world.model, "TRAIN": world.train_prompts, "REWARD": reward}
    return functools.partial(_run, "openrlhf", places, tmp_path)


def _run(
    framework: str,
    places: dict[str, Path],
    tmp_path: Path,
    *overrides: str,
    ranks: int = 1,
    timeout_s: float = 480,
    precision: str = "fp16",
) -> Run:
    text = (HERE / framework / "recipe.yaml").read_text()
    for name, path in {**places, "RANKS": ranks, "PRECISION": precision}.items():
        text = text.replace(name, str(path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    out = tmp_path / "run"
    # composing takes seconds a run and is tested with the recipes
    (result,) = run_recipe(recipe, out, overrides=overrides, timeout_s=timeout_s, check=False)
    metrics, report = out / "fp16" / "metrics.jsonl", out / "fp16" / "precision_report.json"
    return Run(
        result=result,
        log=(out / "fp16" / "train.log").read_text(errors="replace"),
        metrics=[json.loads(line)["data"] for line in metrics.read_text().splitlines()] if metrics.exists() else [],
        report=json.loads(report.read_text()) if report.exists() else None,
    )
