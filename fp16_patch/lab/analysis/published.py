# SPDX-License-Identifier: Apache-2.0
"""An arm's own numbers beside those that the paper shows of it, where the two can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.analysis.run_diff import departures
from fp16_patch.lab.analysis.smoothing import smoothed
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import Points, Series
from fp16_patch.lab.recipes.load import find, load
from fp16_patch.lab.recipes.schema import Published, Recipe
from fp16_patch.mismatch.offline import measure

_SERIES = {
    "training reward": "reward",
    "abs(pi - mu)": "prob_diff_mean",
    "AIME": "evaluation",
    "evaluation": "evaluation",
    "slope of the log-ratio": "slope_per_1000_tokens",
    "KL of whole answers": "sequence_kl",
}
"""A word in what a published number is of, and our series, or a number of ``mismatch.offline.measure``."""


def series_of(number: Published) -> str | None:
    """Our name of what the number is of."""
    return next((name for word, name in _SERIES.items() if word in number.what), None)


def published(recipe: Recipe) -> dict[str, tuple[Published, ...]]:
    """Arm -> the paper's numbers; also at toy scale, where the copy kept with a run has none."""
    if not recipe.published:
        with suppress(Fp16PatchError):
            return load(find(recipe.name.removesuffix("-toy"))).published
    return recipe.published


def is_toy(recipe: Recipe) -> bool:
    return recipe.scale == "toy" or recipe.world is not None


def incomparable(recipe: Recipe, arm: ArmRun) -> str | None:
    """Why the arm's numbers are not those of the paper's experiment; None where nothing speaks against it."""
    if is_toy(recipe):
        return "toy scale"
    if changed := departures(recipe, arm):
        return "not as the recipe: " + "; ".join(changed)
    return None


def evaluation(series: Series) -> Points:
    """The scores of evaluation, where the run has one such series; with several nothing says which one is meant."""
    return next(iter(series.evaluation.values())) if len(series.evaluation) == 1 else ([], [])


def beside(recipe: Recipe, arms: Sequence[ArmRun], window: int) -> list[dict[str, Any]]:
    """One row for each published number: it, the arm's own and at which step, and the verdict."""
    return [
        {
            "arm": arm.name,
            "what": number.what,
            "published": number.value,
            "tolerance": number.tolerance,
            "published_step": number.step,
            "source": number.source,
            "note": number.note,
            **_own(number, recipe, arm, window),
        }
        for arm in arms
        for number in published(recipe).get(arm.name, ())
    ]


def _own(number: Published, recipe: Recipe, arm: ArmRun, window: int) -> dict[str, Any]:
    if is_toy(recipe):
        return {"own": None, "own_step": None, "verdict": "not comparable", "why": "toy scale"}
    name = series_of(number)
    steps, values = _points(arm, name, window)
    if not steps:
        return {"own": None, "own_step": None, "verdict": "no data", "why": f"no {name or 'such number'} was logged"}
    at = _place(number, steps, values)
    own: dict[str, Any] = {"own": values[at], "own_step": steps[at]}
    if reason := incomparable(recipe, arm):
        return own | {"verdict": "not comparable", "why": reason}
    if number.step is not None and steps[-1] < number.step:
        return own | {"verdict": "not reached", "why": f"the run has {steps[-1]} steps, the number is of {number.step}"}
    if number.step is None and not arm.ended:
        return own | {"verdict": "unknown", "why": f"the run has not ended: {arm.status}"}
    apart = values[at] - number.value
    if abs(apart) <= number.tolerance * (1 + 1e-9):
        return own | {"verdict": "within", "why": None}
    return own | {"verdict": "above" if apart > 0 else "below", "why": f"by {abs(apart):.3g}"}


def _points(arm: ArmRun, name: str | None, window: int) -> Points:
    """Evaluation as it is, curves of training smoothed; what is measured of kept log-probs, at the last step."""
    series = arm.series
    if arm.kept is not None and name in (measured := measure(arm.kept)):
        value = measured[name]
        return (series.steps[-1:] or [0], [value]) if value is not None else ([], [])
    if name == "evaluation":
        return evaluation(series)
    steps, values = series.points(name) if name in series.values else ([], [])
    return steps, smoothed(steps, values, window)


def _place(number: Published, steps: Sequence[int], values: Sequence[float]) -> int:
    """The arm's point to compare with the number: its peak, its lowest after that, or where it is at the same step."""
    peak = max(range(len(values)), key=values.__getitem__)
    if number.what.startswith("peak"):
        return peak
    if number.what.startswith("lowest"):
        return min(range(peak, len(values)), key=values.__getitem__)
    return max((i for i, step in enumerate(steps) if number.step is None or step <= number.step), default=0)
