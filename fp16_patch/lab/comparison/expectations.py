# SPDX-License-Identifier: Apache-2.0
"""What a recipe expects of its report: whether the report has such a number, and whether it is within the bounds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.lab.logs.series import Series, number
from fp16_patch.lab.recipes.schema import Expectation, Recipe

_VERDICT = {True: "met", False: "NOT MET"}


def check(expectation: Expectation, report: Mapping[str, Any], unfinished: Collection[str] = ()) -> dict[str, Any]:
    """The expectation beside the report's value.

    ``met`` is None where the report has no such number, and where it comes of an arm among ``unfinished``: what a run
    would have come to is not known. A ratio is of all arms.
    """
    found: Any = report
    for part in expectation.metric.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    value = number(found)
    low, high = expectation.at_least, expectation.at_most
    met = (low is None or value >= low) and (high is None or value <= high) if value is not None else None
    named = set(expectation.metric.split(".")) & set(report["arms"])
    if not (named or set(report["arms"])).isdisjoint(unfinished):
        met = None
    return {
        "expected": str(expectation),
        "metric": expectation.metric,
        "at_least": low,
        "at_most": high,
        "value": value,
        "met": met,
        "verdict": _VERDICT[met] if met is not None else "no data" if value is None else "unknown",
        "source": expectation.source,
    }


def check_metrics(recipe: Recipe) -> None:
    """Raises :class:`Fp16PatchError` naming every metric that no report of this recipe has."""
    if problems := list(_unknown(recipe)):
        raise several(problems)


def _unknown(recipe: Recipe) -> Iterator[Fp16PatchError]:
    report = _of_a_run_without_a_step(recipe) if recipe.expected else {}
    for expectation in recipe.expected:
        found: Any = report
        for part in expectation.metric.split("."):
            if found is None:  # only a run can tell
                break
            if not isinstance(found, Mapping) or part not in found:
                yield _no_number(recipe, expectation, found)
                break
            found = found[part]
        else:
            if found is not None and number(found) is None:
                yield _no_number(recipe, expectation, found)


def _no_number(recipe: Recipe, expectation: Expectation, there: Any) -> Fp16PatchError:
    return Fp16PatchError(
        f"{recipe.name}: expected: metric={expectation.metric!r} is no number of its report",
        code="unknown-metric",
        allowed=f"one of {', '.join(there)} there" if isinstance(there, Mapping) else "the path of a number",
        next_step="take a path from the report.json of a run, under headline, to_reward or arms",
    )


def _of_a_run_without_a_step(recipe: Recipe) -> dict[str, Any]:
    """What of a report can be expected of."""
    from fp16_patch.lab.analysis.summary import headline  # they read recipes too
    from fp16_patch.lab.analysis.time_to_reward import reaching
    from fp16_patch.lab.comparison.compare import of_arm
    from fp16_patch.lab.logs.runs import ArmRun

    arms = [
        ArmRun(name, recipe.frameworks[0], arm.precision, Series(), {}, precision_report=None)
        for name, arm in recipe.arms.items()
    ]
    return {
        "headline": headline(arms),
        "to_reward": reaching(arms, None, window=1),
        "arms": {arm.name: of_arm(arm, window=1) for arm in arms},
    }
