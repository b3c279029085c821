# SPDX-License-Identifier: Apache-2.0
"""Compare an arm's numbers with those published for it, if the two are comparable."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.analysis.run_diff import deviations
from fp16_patch.lab.analysis.smoothing import smooth
from fp16_patch.lab.loading.load import find, load
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import Points, Series
from fp16_patch.lab.recipes.schema import Published, Recipe
from fp16_patch.mismatch.offline import OfflineMismatch

_SERIES = {
    "training reward": "reward",
    "abs(pi - mu)": "prob_diff_mean",
    "AIME": "evaluation",
    "evaluation": "evaluation",
    "slope of the log-ratio": "slope_per_1000_tokens",
    "KL of whole answers": "sequence_kl",
}
"""Words in the name of a published number -> our series, or a field of ``OfflineMismatch``."""
NOT_COMPARABLE, NO_DATA, NOT_FINITE = "not comparable", "no data", "not finite"


@dataclass(frozen=True)
class PaperComparison:
    """A published number, the arm's ``own`` number at ``own_step``, and the verdict.

    ``verdict`` is within, above, below, not reached, unknown, no data, not finite or not comparable.
    """

    arm: str
    what: str
    published: float
    tolerance: float
    published_step: int | None
    source: str
    note: str
    own: float | None
    own_step: int | None
    verdict: str
    why: str | None

    @property
    def drawable(self) -> bool:
        """Return whether the number may be drawn next to the arm's curve."""
        return self.verdict not in (NOT_COMPARABLE, NO_DATA, NOT_FINITE)


def series_name(what: str) -> str | None:
    """Return our name of the series that a published number is about."""
    return next((name for words, name in _SERIES.items() if words in what), None)


def evaluation_points(series: Series) -> Points:
    """Return the evaluation scores if the run has exactly one such series, else nothing."""
    return next(iter(series.evaluation.values())) if len(series.evaluation) == 1 else ([], [])


def compare_with_paper(
    recipe: Recipe, arm: ArmRun, offline: OfflineMismatch | None, window: int
) -> list[PaperComparison]:
    """Compare ``arm`` with every number published for it."""
    is_toy = recipe.scale == "toy" or recipe.world is not None
    changed = [] if is_toy else deviations(recipe, arm)
    rows = []
    toy: _Own = None, None, NOT_COMPARABLE, "toy scale"
    for number in _published(recipe).get(arm.name, ()):
        own = toy if is_toy else _compare(number, arm, offline, window, changed)
        facts = number.what, number.value, number.tolerance, number.step, number.source, number.note
        rows.append(PaperComparison(arm.name, *facts, *own))
    return rows


def _published(recipe: Recipe) -> dict[str, tuple[Published, ...]]:
    """Return the published numbers by arm; at toy scale, whose saved recipe has none, those of the shipped recipe."""
    if not recipe.published:
        with suppress(Fp16PatchError):
            return load(find(recipe.name.removesuffix("-toy"))).published
    return recipe.published


_Own = tuple[float | None, int | None, str, str | None]
"""The last four fields of :class:`PaperComparison`."""


def _compare(
    number: Published, arm: ArmRun, offline: OfflineMismatch | None, window: int, changed: Sequence[str]
) -> _Own:
    name = series_name(number.what)
    (steps, values), not_finite = _points(arm, offline, name, window)
    if not steps:
        nothing = (NOT_FINITE, not_finite) if not_finite else (NO_DATA, f"no {name or 'such number'} was logged")
        return None, None, *nothing
    at = _matching_index(number, steps, values)
    own, step, last = values[at], steps[at], steps[-1]
    if changed:
        return own, step, NOT_COMPARABLE, "not as the recipe: " + "; ".join(changed)
    if not_finite:
        return own, step, NOT_FINITE, not_finite
    if number.step is not None and last < number.step:
        return own, step, "not reached", f"the run has {last} steps, the number is of {number.step}"
    if number.step is None and not arm.ended:
        return own, step, "unknown", f"the run has not ended: {arm.status}"
    difference = own - number.value
    if abs(difference) <= number.tolerance * (1 + 1e-9):
        return own, step, "within", None
    return own, step, "above" if difference > 0 else "below", f"by {abs(difference):.3g}"


def _points(arm: ArmRun, offline: OfflineMismatch | None, name: str | None, window: int) -> tuple[Points, str | None]:
    """Return raw evaluation scores, smoothed training curves, or an offline measurement at the last step.

    With it, in how many steps or answers that is not finite, or None.
    """
    series = arm.series
    if offline is not None and name is not None and hasattr(offline, name):
        value, left_out = getattr(offline, name), offline.non_finite_answers
        of = f"{left_out:g} of {offline.answers + left_out:g} answers"
        measured = (series.steps[-1:] or [0], [value]) if value is not None else ([], [])
        return measured, f"{name} not finite in {of}" if left_out else None
    if name == "evaluation":
        name, points = next(iter(series.evaluation), name), evaluation_points(series)
    else:
        steps, values = series.points(name) if name in series.values else ([], [])
        points = steps, smooth(steps, values, window)
    return points, f"{name} {series.non_finite[name]}" if name in series.non_finite else None


def _matching_index(number: Published, steps: Sequence[int], values: Sequence[float]) -> int:
    """Return the index of the arm's point to compare: its peak, its lowest after the peak, or the same step."""
    peak = max(range(len(values)), key=values.__getitem__)
    if number.what.startswith("peak"):
        return peak
    if number.what.startswith("lowest"):
        return min(range(peak, len(values)), key=values.__getitem__)
    return max((i for i, step in enumerate(steps) if number.step is None or step <= number.step), default=0)
