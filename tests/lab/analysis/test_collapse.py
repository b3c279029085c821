# SPDX-License-Identifier: Apache-2.0
"""Detect a collapse where it begins, and none in noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp16_patch.lab.analysis.collapse import FALL, detect_collapse
from fp16_patch.lab.analysis.smoothing import default_window, noise_std, smooth
from fp16_patch.lab.logs.readers import StepMetrics
from fp16_patch.lab.logs.series import METRIC_KEYS, Series, build_series

Curve = Callable[[int], float]
VERL = {name: keys[0] for name, keys in METRIC_KEYS.items()}


def run_of(steps: int, every: int = 1, **series: Curve) -> Series:
    rows = StepMetrics()
    for step in range(1, steps + 1, every):
        rows.add(step, {VERL[name]: curve(step) for name, curve in series.items()})
    return build_series(rows)


def noisy(curve: Curve, deviation: float, seed: int = 0) -> Curve:
    chance = random.Random(seed)
    return lambda step: curve(step) + chance.gauss(0, deviation)


def falls_at(step: int, over: int, to: float) -> Curve:
    """0.8, and from ``step`` on within ``over`` steps ``to``."""
    return lambda at: 0.8 + (to - 0.8) * min(1.0, max(0.0, (at - step) / over))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(20, 1500),
    deviation=st.floats(0, 0.5),
    level=st.floats(-1, 1),
    rise=st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
def test_noise_is_not_a_collapse(steps: int, deviation: float, level: float, rise: float, seed: int) -> None:
    series = run_of(steps, reward=noisy(lambda step: level + rise * step / steps, deviation, seed))
    assert detect_collapse(series, default_window(steps)).found is False


@settings(max_examples=60, deadline=None)
@given(solved=st.floats(0.02, 0.98), samples=st.integers(64, 1024), seed=st.integers(0, 10_000))
def test_binomial_noise_is_not_a_collapse(solved: float, samples: int, seed: int) -> None:
    deviation = math.sqrt(solved * (1 - solved) / samples)
    series = run_of(300, reward=noisy(lambda _: solved, deviation, seed))
    assert detect_collapse(series, default_window(300)).found is False


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(150, 700),
    over=st.integers(1, 200),
    to=st.floats(0, 0.6),
    deviation=st.floats(0, 0.04),
    seed=st.integers(0, 10_000),
)
def test_finds_where_a_fall_begins(at: int, over: int, to: float, deviation: float, seed: int) -> None:
    series, window = run_of(1000, reward=noisy(falls_at(at, over, to), deviation, seed)), default_window(1000)
    found = detect_collapse(series, window)
    assert found.found is True
    # It begins a third of the fall that is looked for below the peak, or six standard deviations.
    depth = max(FALL * 0.8 / 3, 6 * deviation / math.sqrt(window)) / (0.8 - to)
    assert at - window <= found.step <= at + window + over * min(1.0, 1.5 * depth)
    assert found.signs[0].before == pytest.approx(0.8, abs=0.05)
    assert found.signs[0].after == pytest.approx(to, abs=0.05)


def test_detects_the_paper_bf16_collapse_only() -> None:
    """Read off Figure 1: 0.73 at step 370 and 0.60 where it stops at 610; 0.98 at 2040."""
    bf16 = run_of(
        610, reward=noisy(lambda s: 0.35 + 0.38 * s / 370 if s <= 370 else 0.73 - 0.13 * (s - 370) / 240, 0.02)
    )
    fp16 = run_of(2040, reward=noisy(lambda s: 0.98 - 0.63 * math.exp(-s / 300), 0.02))
    window = default_window(2040)
    found = detect_collapse(bf16, window)
    assert 350 <= found.step <= 470
    assert found.how[0].startswith("the smoothed reward falls from 0.7")
    assert detect_collapse(fp16, window).found is False


@pytest.mark.parametrize("every", [1, 5, 10])
def test_missing_steps_do_not_move_the_begin(every: int) -> None:
    series = run_of(1000, every, reward=noisy(falls_at(500, 40, 0.2), 0.02))
    assert detect_collapse(series, default_window(1000)).step == pytest.approx(500, abs=25)


def test_recovered_reward_is_a_warning() -> None:
    dip = run_of(1000, reward=lambda step: 0.3 if 400 <= step < 500 else 0.8)
    found = detect_collapse(dip, 25)
    assert (found.found, found.step) == (False, None)
    assert "recovered by step 5" in found.warnings[0]


def test_ignores_small_or_short_falls() -> None:
    for reward in (falls_at(500, 10, 0.8 * (1 - FALL) + 0.01), falls_at(990, 5, 0.0)):
        assert detect_collapse(run_of(1000, reward=reward), 25).found is False


def test_negative_rewards_measure_height_from_the_lowest() -> None:
    assert detect_collapse(run_of(400, reward=lambda s: -0.2 if s < 200 else -0.9), 11).found is True
    assert detect_collapse(run_of(400, reward=noisy(lambda _: -0.5, 0.1)), 11).found is False


def test_lasting_nan_gradient_norm_is_a_collapse() -> None:
    series = run_of(400, reward=lambda _: 0.8, grad_norm=lambda step: math.nan if step >= 300 else 0.2)
    found = detect_collapse(series, 11)
    assert (found.found, found.step) == (True, 300)
    assert found.how == ["the gradient norm is not finite from step 300 on"]


def test_ignores_single_nonfinite_and_missing_norms() -> None:
    rows = StepMetrics()
    for step in range(1, 401):
        norm = {} if step % 7 == 0 else {"actor/grad_norm": math.inf if step % 50 == 0 else 0.2}
        rows.add(step, {"critic/score/mean": 0.8, **norm})
    assert detect_collapse(build_series(rows), 11).found is False


def test_growing_mismatch_is_a_warning() -> None:
    series = run_of(
        1000, reward=lambda _: 0.8, prob_diff_mean=noisy(lambda s: 4e-3 * (1 + max(0, s - 500) / 100), 1e-4)
    )
    found = detect_collapse(series, 25)
    assert found.found is False
    assert found.signs[0].kind == "mean abs(pi - mu)"
    assert found.signs[0].step == pytest.approx(600, abs=25)
    assert found.signs[0].before == pytest.approx(4e-3, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(spread=st.floats(0, 0.5), seed=st.integers(0, 10_000))
def test_noisy_level_mismatch_has_not_grown(spread: float, seed: int) -> None:
    chance = random.Random(seed)
    series = run_of(400, reward=lambda _: 0.8, prob_diff_mean=lambda _: 1e-3 * math.exp(chance.gauss(0, spread)))
    assert detect_collapse(series, default_window(400)).warnings == []


@pytest.mark.parametrize("steps", [0, 1, 5, 19])
def test_a_short_run_is_too_short_to_tell(steps: int) -> None:
    assert detect_collapse(run_of(steps, reward=lambda _: 0.5), 5).found is None


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=60), window=st.integers(1, 25).map(lambda n: n | 1))
def test_smoothing_is_the_mean_of_the_window(values: list[float], window: int) -> None:
    steps = list(range(1, len(values) + 1))
    half = window // 2
    expected = [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i - half) : i + half + 1]]]
    assert smooth(steps, values, window) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20)
@given(deviation=st.floats(0.05, 10), seed=st.integers(0, 1000))
def test_noise_std_ignores_a_moving_curve(deviation: float, seed: int) -> None:
    curve = noisy(lambda step: math.sin(step / 200), deviation, seed)
    assert noise_std([curve(step) for step in range(4000)]) == pytest.approx(deviation, rel=0.15)
