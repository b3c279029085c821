# SPDX-License-Identifier: Apache-2.0
"""Measure how long each arm took to reach a reward: training steps, time, samples and response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from fp16_patch.lab.analysis.smoothing import smooth
from fp16_patch.lab.analysis.summary import ratio
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import Series

_DEFAULT_SHARE = 0.9
COSTS = {"steps": "training steps", "seconds": "seconds", "samples": "samples", "response_tokens": "response tokens"}
"""The fields of :class:`Costs` with their labels."""


@dataclass(frozen=True)
class Costs:
    """What it took to reach the reward, None if not logged. ``seconds`` are of whole steps, including evaluation."""

    steps: float | None = None
    seconds: float | None = None
    samples: float | None = None
    response_tokens: float | None = None


@dataclass(frozen=True)
class TimeToReward:
    """The costs of each arm up to the first step whose smoothed reward is ``reward``; None if it never gets there.

    ``ratio`` is the first BF16 arm over the first FP16 arm.
    """

    reward: float | None
    arms: dict[str, Costs | None]
    ratio: Costs


def default_reward(arms: Sequence[ArmRun], window: int) -> float | None:
    """Return 90% of the way from the arms' mean first reward to the highest reward that every arm reaches.

    Rewards are smoothed. Returns None if no arm logged a reward, or one of them never rises above the start.
    """
    curves = [smooth(*arm.series.points("reward"), window) for arm in arms if arm.series.known("reward")]
    if not curves:
        return None
    start, top = fmean(curve[0] for curve in curves), min(max(curve) for curve in curves)
    return start + _DEFAULT_SHARE * (top - start) if top > start else None


def measure_time_to_reward(arms: Sequence[ArmRun], reward: float | None, window: int) -> TimeToReward:
    """Add up the costs of each arm until its reward, smoothed over ``window`` steps, first reaches ``reward``."""
    costs = {arm.name: None if reward is None else _costs(arm.series, reward, window) for arm in arms}
    first = {arm.precision: costs[arm.name] or Costs() for arm in reversed(arms)}
    bf16, fp16 = (asdict(first.get(precision, Costs())) for precision in ("bf16", "fp16"))
    return TimeToReward(reward, costs, Costs(**{name: ratio(bf16[name], fp16[name]) for name in COSTS}))


def _costs(series: Series, reward: float, window: int) -> Costs | None:
    steps, rewards = series.points("reward")
    curve = zip(steps, smooth(steps, rewards, window), strict=True)
    reached = next((step for step, value in curve if value >= reward), None)
    if reached is None:
        return None
    return Costs(float(reached), *(_total(series, name, reached) for name in COSTS if name != "steps"))


def _total(series: Series, name: str, until: int) -> float | None:
    """Return the sum over all steps up to ``until``, with the mean in place of steps without a finite value."""
    logged = [value for step, value in zip(*series.points(name), strict=True) if step <= until]
    return fmean(logged) * until if logged else None
