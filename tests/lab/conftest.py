# SPDX-License-Identifier: Apache-2.0
"""A recipe to write and edit; run directories with invented curves in place of a trainer's."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fp16_patch.lab.arms.settings import write_settings
from fp16_patch.lab.launch.plan import make_plan
from fp16_patch.lab.loading.load import find

TEXT = """
name: tiny
title: a recipe for tests
reproduces: {what: nothing, where: nowhere, source: invented}
model: {path: some/model}
data: {train: train.parquet, val: val.parquet}
algorithm: {name: GRPO}
hardware: {ranks: 1, timeout_minutes: 1}
arms:
  bf16: {precision: bf16}
  fp16: {precision: fp16}
expected:
  - {metric: headline.prob_diff_ratio, at_least: 6, source: invented}
verl:
  overrides:
    trainer.total_training_steps: 4
"""
OPENRLHF = """\
openrlhf:
  arguments:
    data.max_samples: 8
    rollout.batch_size: 2
    ds.zero_stage: 2
"""


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe; each ``(old, new)`` pair edits the default text."""

    def write(*edits: tuple[str, str]) -> Path:
        text = TEXT
        for old, new in edits:
            assert old in text, f"{old!r} is not in the recipe that tests edit"
            text = text.replace(old, new)
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def openrlhf() -> str:
    """The section that makes the recipe one for OpenRLHF."""
    return OPENRLHF


Reward = Callable[[int], float]


@pytest.fixture
def rises() -> Reward:
    """As FP16 in the paper's sanity test: from 0.35 to 0.98 within 2000 steps."""
    return lambda step: 0.98 - 0.63 * math.exp(-step / 300)


@pytest.fixture
def collapses(rises: Reward) -> Reward:
    """As BF16, and further down: a peak at step 370."""
    return lambda step: 0.87 * rises(step) if step <= 370 else max(0.05, 0.87 * rises(370) - (step - 370) * 8e-4)


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """Write a run directory of a shipped recipe."""
    return _write_run


def _write_run(
    folder: Path,
    recipe: str,
    rewards: Mapping[str, Reward],
    steps: Mapping[str, int],
    *,
    overrides: tuple[str, ...] = (),
    noise: float = 0.02,
    seed: int = 0,
    scale: str = "paper",
    framework: str = "verl",
) -> Path:
    """As the launcher leaves it: one arm for each of ``rewards``, of so many ``steps``, reward noise normal."""
    path, chance = find(recipe), random.Random(seed)
    folder.mkdir(parents=True)
    plan = make_plan(path, folder, arms=list(rewards), overrides=overrides, scale=scale, framework=framework)
    (folder / "recipe.yaml").write_text(plan.text)
    started = {arm: command.as_shell() for arm, command in plan.commands.items()}
    precisions = {name: arm.precision for name, arm in plan.recipe.arms.items()}
    for arm, reward in rewards.items():
        (folder / arm).mkdir()
        write_settings(plan.jobs[arm].files, framework, plan.commands[arm])
        (folder / arm / "command.sh").write_text(f"#!/usr/bin/env bash\n{started[arm]}\n")
        mismatch = 4e-3 if precisions[arm] == "bf16" else 7e-4
        rows = []
        for step in range(1, steps[arm] + 1):
            size = mismatch * (1 + (step / 400 if precisions[arm] == "bf16" else 0)) * chance.uniform(0.9, 1.1)
            data: dict[str, float] = {
                "critic/score/mean": min(1.0, max(0.0, reward(step) + chance.gauss(0, noise))),
                "mismatch/prob_diff_mean": size,
                "mismatch/k3_kl": size**2,
                "mismatch/pi_minus_mu_max": 20 * size,
                "mismatch/pi_minus_mu_min": -20 * size,
                "actor/grad_norm": 0.2,
                "timing_s/step": 100.0,
                "response_length/mean": 4000.0,
                "prompt_length/mean": 100.0,
                "perf/total_num_tokens": 512 * 4100.0,
            }
            if step % 50 == 0:
                data["val-core/aime_2024/acc/mean@32"] = 0.36 * reward(step) + chance.gauss(0, 0.01)
            rows.append(json.dumps({"step": step, "data": data}))
        (folder / arm / "metrics.jsonl").write_text("\n".join(rows) + "\n")
        result = {"status": "completed", "framework": framework, "precision": precisions[arm], "command": started[arm]}
        (folder / arm / "result.json").write_text(json.dumps(result | {"seconds": 100.0 * steps[arm], "error": None}))
    return folder
