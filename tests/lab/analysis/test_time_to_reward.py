# SPDX-License-Identifier: Apache-2.0
"""Measure steps, time and tokens to a reward."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from fp16_patch.lab.analysis.time_to_reward import Costs, default_reward, measure_time_to_reward
from fp16_patch.lab.logs.readers import StepMetrics
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import build_series


def arm(name: str, rewards: list[float], seconds: float | None = 2.0, every: int = 1, tokens: float = 50.0) -> ArmRun:
    rows = StepMetrics()
    for i, reward in enumerate(rewards):
        counts = {"rollout/num_samples": 16, "rollout/response_length_mean": tokens}
        time = {} if seconds is None else {"timing/step_total": seconds}
        rows.add(1 + i * every, {"rollout/reward_mean": reward, **counts, **time})
    return ArmRun(name, "openrlhf", name[:4], build_series(rows), {}, None)


LINE = [step / 10 for step in range(11)]


def test_counts_costs_until_the_reward() -> None:
    arms = [arm("bf16", LINE, seconds=3.0, tokens=100.0), arm("fp16", [2 * r for r in LINE])]
    found = measure_time_to_reward(arms, 0.8, window=1)
    assert found.arms["bf16"] == Costs(9, 27.0, 144.0, 14400.0)
    assert found.arms["fp16"] == Costs(5, 10.0, 80.0, 4000.0)
    assert asdict(found.ratio) == pytest.approx({"steps": 1.8, "seconds": 2.7, "samples": 1.8, "response_tokens": 3.6})


def test_unreached_reward_and_unlogged_cost_are_none() -> None:
    found = measure_time_to_reward([arm("bf16", [0.1] * 8), arm("fp16", LINE, seconds=None)], 0.8, window=1)
    assert found.arms["bf16"] is None
    assert (found.arms["fp16"].steps, found.arms["fp16"].seconds) == (9, None)
    assert set(asdict(found.ratio).values()) == {None}


def test_missing_steps_cost_the_mean() -> None:
    assert measure_time_to_reward([arm("fp16", LINE, every=5)], 0.8, window=1).arms["fp16"].seconds == 2.0 * 41


def test_ratio_uses_first_arm_of_each_precision() -> None:
    arms = [arm("bf16", LINE), arm("bf16-slow", [r / 2 for r in LINE] + LINE), arm("fp16", LINE)]
    assert measure_time_to_reward(arms, 0.8, window=1).ratio.steps == 1.0


def test_smoothing_ignores_one_lucky_step() -> None:
    lucky = [0.1, 0.1, 1.0, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9]
    assert measure_time_to_reward([arm("fp16", lucky)], 0.8, window=1).arms["fp16"].steps == 3
    assert measure_time_to_reward([arm("fp16", lucky)], 0.8, window=3).arms["fp16"].steps == 8


def test_every_arm_reaches_the_default_reward() -> None:
    arms = [arm("bf16", [r * 0.7 for r in LINE]), arm("fp16", LINE)]
    assert default_reward(arms, window=1) == pytest.approx(0.63)
    assert None not in measure_time_to_reward(arms, default_reward(arms, 1), 1).arms.values()
    assert default_reward([arm("bf16", [0.5, 0.4]), arm("fp16", LINE)], window=1) == pytest.approx(0.25 + 0.9 * 0.25)
    assert default_reward([arm("bf16", [0.5, 0.4]), arm("fp16", [0.5, 0.3])], window=1) is None
    assert default_reward([arm("bf16", [])], window=1) is None
