# SPDX-License-Identifier: Apache-2.0
"""Check what a recipe expects of its report: that the report has such a number, and that it is within the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.lab.analysis.summary import compared_pair
from fp16_patch.lab.comparison.model import CheckedExpectation, RunReport
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import finite_number
from fp16_patch.lab.recipes.schema import Expectation, Recipe

_SERIES = {
    "prob_diff_ratio": ("prob_diff_mean",),
    "k3_kl_ratio": ("k3_kl",),
    "to_reward": ("reward",),
    "collapse": ("reward", "grad_norm"),
    "seconds_per_step": ("seconds",),
    "last_loss_scale": ("loss_scale",),
}
"""Part of a number's path -> the series that it is computed from. Other parts are names of series, or of none."""
_VERDICT = {True: "met", False: "NOT MET"}


def check_expectation(expectation: Expectation, report: RunReport, arms: Sequence[ArmRun]) -> CheckedExpectation:
    """Compare the report's number with the bounds.

    ``met`` is None if the report has no such number, or if it depends on an arm that has not ended. A number that is
    not of one arm depends on all of them. A number of a series that is not finite at some step is never met.
    """
    path = expectation.metric.split(".")
    found: Any = report
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
    value = finite_number(found)
    low, high = expectation.at_least, expectation.at_most
    met = (low is None or value >= low) and (high is None or value <= high) if value is not None else None
    named = [arm for arm in arms if arm.name in path]
    if not all(arm.ended for arm in named or arms):
        met = None
    not_finite = _not_finite(path, named or compared_pair(arms)) or _answers_left_out(path, report)
    if not_finite:
        met = False
    return CheckedExpectation(
        expected=str(expectation),
        metric=expectation.metric,
        at_least=low,
        at_most=high,
        value=value,
        met=met,
        verdict=_VERDICT[met] if met is not None else "no data" if value is None else "unknown",
        source=expectation.source,
        why=not_finite,
    )


def _not_finite(path: Sequence[str], arms: Sequence[ArmRun]) -> str:
    """Return in how many steps each series behind a number is not finite. Numbers of no arm compare ``arms``."""
    names = dict.fromkeys(name for part in path for name in _SERIES.get(part, (part,)))
    found = {f"{arm.name} {name}": arm.series.non_finite.get(name) for arm in arms for name in names}
    return "; ".join(f"{name} {steps}" for name, steps in found.items() if steps)


def _answers_left_out(path: Sequence[str], report: RunReport) -> str:
    """Return how many answers the offline measurement of one arm has left out."""
    offline = next((report.arms[part].offline for part in path if part in report.arms), None)
    left_out = offline.non_finite_answers if offline is not None and "offline" in path else 0
    return f"{left_out:g} answers not finite, left out" if left_out else ""


def check_metrics(recipe: Recipe) -> None:
    """Check that every expected metric is the path of a number in a report of this recipe.

    Raises:
        Fp16PatchError: Names every metric that is not.
    """
    if problems := list(_unknown_metrics(recipe)):
        raise combine_errors(problems)


def _unknown_metrics(recipe: Recipe) -> Iterator[Fp16PatchError]:
    for expectation in recipe.expected:
        kind: Any = RunReport
        for part in expectation.metric.split("."):
            if kind is Any:  # only a run can tell
                break
            keys = _keys(kind, recipe)
            if part not in keys:
                yield _not_a_number(recipe, expectation, keys)
                break
            kind = _without_none(keys[part])
        else:
            if kind not in (int, float, Any):
                yield _not_a_number(recipe, expectation, _keys(kind, recipe))


def _keys(kind: Any, recipe: Recipe) -> dict[str, Any]:
    """Return the keys under a part of the report with their types. The keys of a ``dict`` are arms."""
    if is_dataclass(kind):
        return get_type_hints(kind)
    return dict.fromkeys(recipe.arms, get_args(kind)[1]) if get_origin(kind) is dict else {}


def _without_none(kind: Any) -> Any:
    return next((member for member in get_args(kind) if NoneType in get_args(kind) and member is not NoneType), kind)


def _not_a_number(recipe: Recipe, expectation: Expectation, keys: Mapping[str, Any]) -> Fp16PatchError:
    return Fp16PatchError(
        f"{recipe.name}: expected: metric={expectation.metric!r} is not a number of its report",
        code="unknown-metric",
        allowed=f"one of {', '.join(keys)} there" if keys else "the path of a number",
        next_step="take a path from the report.json of a run, under headline, to_reward or arms",
    )
