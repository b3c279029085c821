# SPDX-License-Identifier: Apache-2.0
"""Render a comparison as one HTML file: no scripts, no network, the figures embedded."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fp16_patch.lab.analysis import collapse
from fp16_patch.lab.analysis.time_to_reward import COSTS
from fp16_patch.lab.comparison import terminal
from fp16_patch.lab.comparison.model import RECIPE_SECTIONS, Comparison

_FOLDER = Path(__file__).parent


def render_html(comparison: Comparison, plots: Mapping[str, Path]) -> str:
    """Return the page. ``plots`` maps names to PNG files."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"show": terminal.show, "flat": _flat, "minutes": lambda s: None if s is None else s / 60}
    environment.globals["terminal"] = terminal
    reports = comparison.reports
    arms = {f"{label} {name}".strip(): arm for label, run in reports.items() for name, arm in run.arms.items()}
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        reports=reports,
        first=next(iter(reports.values())),
        arms=arms,
        precision=_precision_tables({name: arm.precision_report or {} for name, arm in arms.items()}),
        versions=_rows([arm.versions for arm in arms.values()]),
        images={name: base64.b64encode(plot.read_bytes()).decode("ascii") for name, plot in plots.items()},
        costs=COSTS,
        collapse=collapse,
        recipe_sections=RECIPE_SECTIONS,
    )


def _precision_tables(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Return the rows of one table per role, with a column per arm, and of the patches."""
    roles = [report.get("roles") or {} for report in reports.values()]
    tables = {role: _rows([found.get(role) or {} for found in roles]) for role in _keys(roles)}
    tables = {role: [[name.replace("_", " "), *cells] for name, *cells in rows] for role, rows in tables.items()}
    return {**tables, "patches, by the ledger of each process": _rows([_outcomes(one) for one in reports.values()])}


def _outcomes(report: Mapping[str, Any]) -> dict[str, str]:
    """Count the outcomes in the ledger of each process."""
    found = {}
    for process in report.get("processes") or []:
        counts = Counter(str(entry["outcome"]) for entry in process.get("ledger") or [])
        found[str(process["process"])] = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "none"
    return found


def _rows(columns: list[Mapping[str, Any]]) -> list[list[str]]:
    """Return one row per key, with the value in each column."""
    return [[key, *(_flat(column.get(key)) for column in columns)] for key in _keys(columns)]


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _flat(value: Any) -> str:
    """Return the value as text on one line, and ``-`` for nothing."""
    if value is None or value == {}:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(item)}" for key, item in value.items())
    return str(value)
