# SPDX-License-Identifier: Apache-2.0
"""Summarize the final rewards of arms that were run several times."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fp16_patch.lab.analysis.smoothing import smooth
from fp16_patch.lab.logs.runs import Run


@dataclass(frozen=True)
class RepeatedArm:
    """The final smoothed rewards of one arm over several runs. The interval is their range: the runs are few.

    ``not_finite`` counts the runs with rewards that are NaN or infinite. A run without any other is not in ``runs``.
    """

    recipe: str
    framework: str
    arm: str
    runs: int
    mean: float
    lowest: float
    highest: float
    not_finite: int = 0


def summarize_seeds(runs: Sequence[Run], window: int) -> list[RepeatedArm]:
    """Return one row for each arm that ended in more than one run of a recipe on a framework."""
    finals: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    not_finite = Counter[tuple[str, str, str]]()
    for run in runs:
        for arm in run.arms:
            steps, rewards = arm.series.points("reward")
            key = run.recipe.name, arm.framework, arm.name
            if arm.ended and steps:
                finals[key].append(smooth(steps, rewards, window)[-1])
            if arm.ended and "reward" in arm.series.non_finite:
                not_finite[key] += 1
    return [
        RepeatedArm(*key, len(values), fmean(values), min(values), max(values), not_finite[key])
        for key, values in finals.items()
        if len(values) > 1
    ]
