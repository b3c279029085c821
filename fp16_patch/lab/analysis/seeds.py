# SPDX-License-Identifier: Apache-2.0
"""The same arms run several times: the mean of their final rewards, and the lowest and highest of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from fp16_patch.lab.analysis.run_diff import Run
from fp16_patch.lab.analysis.smoothing import smoothed


def repeats(runs: Sequence[Run], window: int) -> list[dict[str, Any]]:
    """One row for each arm that ended in more than one of the runs of a recipe on a framework.

    The interval is the range of the runs. They are few, and of a few nothing else can be said for sure.
    """
    finals: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        for arm in run.arms:
            steps, rewards = arm.series.points("reward")
            if arm.ended and steps:
                finals[run.recipe.name, arm.framework, arm.name].append(smoothed(steps, rewards, window)[-1])
    return [
        {
            "recipe": recipe,
            "framework": framework,
            "arm": arm,
            "runs": len(values),
            "mean": fmean(values),
            "lowest": min(values),
            "highest": max(values),
        }
        for (recipe, framework, arm), values in finals.items()
        if len(values) > 1
    ]
