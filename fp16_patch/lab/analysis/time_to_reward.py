# SPDX-License-Identifier: Apache-2.0
"""How long each arm took to a reward: training steps, time, samples and response tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fp16_patch.lab.analysis.smoothing import smoothed
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import Series

_SHARE = 0.9
COSTS = {"steps": "training steps", "seconds": "seconds", "samples": "samples", "response_tokens": "response tokens"}
"""What it took, and in words. Seconds are of whole steps, evaluation in them included."""


def default_reward(arms: Sequence[ArmRun], window: int) -> float | None:
    """Nine tenths of the way from where the arms start, on average, to the highest reward that every arm reaches.

    Of smoothed curves. None where no arm logged a reward, or one of them never rises above the start.
    """
    curves = [smoothed(*arm.series.points("reward"), window) for arm in arms if arm.series.known("reward")]
    if not curves:
        return None
    start, top = fmean(curve[0] for curve in curves), min(max(curve) for curve in curves)
    return start + _SHARE * (top - start) if top > start else None


def reaching(arms: Sequence[ArmRun], reward: float | None, window: int) -> dict[str, Any]:
    """The costs of each arm up to the first step whose smoothed reward is ``reward``, and their ratios, BF16 over FP16.

    An arm that never gets there has None; a cost that was not logged is None. Ratios are of the first arm in either
    precision.
    """
    costs = {arm.name: None if reward is None else _costs(arm.series, reward, window) for arm in arms}
    first = {arm.precision: costs[arm.name] or {} for arm in reversed(arms)}
    bf16, fp16 = first.get("bf16", {}), first.get("fp16", {})
    return {
        "reward": reward,
        "arms": costs,
        "ratio": {name: _ratio(bf16.get(name), fp16.get(name)) for name in COSTS},
    }


def _costs(series: Series, reward: float, window: int) -> Mapping[str, float | None] | None:
    steps, rewards = series.points("reward")
    curve = zip(steps, smoothed(steps, rewards, window), strict=True)
    reached = next((step for step, value in curve if value >= reward), None)
    if reached is None:
        return None
    sums = {name: _total(series, name, reached) for name in COSTS if name != "steps"}
    return {"steps": float(reached), **sums}


def _total(series: Series, name: str, until: int) -> float | None:
    """The sum over all steps up to ``until``, those that were not logged taken to be like those that were."""
    logged = [value for step, value in zip(*series.points(name), strict=True) if step <= until]
    return fmean(logged) * until if logged else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
