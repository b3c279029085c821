# SPDX-License-Identifier: Apache-2.0
"""Curves in the records in benchmarks/: a number, ``"NaN"`` where one was logged that is not finite, or null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fp16_patch.lab.logs.series import Series, finite_number

NOT_FINITE = "NaN"
"""NaN or an infinity. JSON has neither."""

Value = float | str | None


def record_curve(series: Series, name: str, digits: int) -> list[Value]:
    """Return one series of a run for its record, with so many significant digits."""
    not_finite = set(series.non_finite_steps(name))
    pairs = zip(series.steps, series.values[name], strict=True)
    return [NOT_FINITE if step in not_finite else rounded(value, digits) for step, value in pairs]


def rounded(value: float | None, digits: int) -> float | None:
    """Return ``value`` with so many significant digits."""
    return None if value is None else float(f"{value:.{digits}g}")


def finite(values: Iterable[Any]) -> list[float]:
    """Return the finite numbers of a recorded curve."""
    return [number for value in values if (number := finite_number(value)) is not None]


def count_not_finite(values: Iterable[Any]) -> int:
    """Return the steps of a recorded curve that logged a number that is not finite."""
    return sum(value is not None and finite_number(value) is None for value in values)


def show_curve(values: Sequence[Value]) -> str:
    """Return a curve as text, ``-`` if it was not logged."""
    logged = [value for value in values if value is not None]
    return " ".join(value if isinstance(value, str) else f"{value:.3g}" for value in logged) or "-"


def note(records: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return ``", not finite in 3 of 200 steps"`` for what ``non_finite`` of the records counts; empty if nothing."""
    bad = sum(record.get("non_finite", {}).get(name, 0) for record in records)
    return f", not finite in {bad} of {sum(record['steps'] for record in records)} steps" if bad else ""
