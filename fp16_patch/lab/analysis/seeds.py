# SPDX-License-Identifier: Apache-2.0
"""Summarize the final rewards of arms that were run several times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fp16_patch.lab.analysis.smoothing import smooth
from fp16_patch.lab.logs.runs import Run


@dataclass(frozen=True)
class RepeatedArm:
    """The final smoothed rewards of one arm over several runs. The interval is their range: the runs are few."""

    recipe: str
    framework: str
    arm: str
    runs: int
    mean: float
    lowest: float
    highest: float


def summarize_seeds(runs: Sequence[Run], window: int) -> list[RepeatedArm]:
    """Return one row for each arm that ended in more than one run of a recipe on a framework."""
    finals: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        for arm in run.arms:
            steps, rewards = arm.series.points("reward")
            if arm.ended and steps:
                finals[run.recipe.name, arm.framework, arm.name].append(smooth(steps, rewards, window)[-1])
    return [
        RepeatedArm(*key, runs=len(values), mean=fmean(values), lowest=min(values), highest=max(values))
        for key, values in finals.items()
        if len(values) > 1
    ]
