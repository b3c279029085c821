# SPDX-License-Identifier: Apache-2.0
"""Compare the arms of runs: read them, build the comparison, render it, and write the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras
from fp16_patch.lab.comparison.expectations import check_expectation
from fp16_patch.lab.comparison.inputs import read_inputs
from fp16_patch.lab.comparison.model import Comparison, build_comparison
from fp16_patch.lab.comparison.report_directory import DATA, PAGE, atomic_report_dir
from fp16_patch.lab.comparison.terminal import render_text
from fp16_patch.lab.logs.runs import Run


def compare(
    *sources: Path | str,
    out: Path | None = None,
    recipe: str | None = None,
    scale: str | None = None,
    reward: float | None = None,
    window: int | None = None,
    allow_different: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write ``report.json``, ``report.html`` and the plots into ``out``; print the table; return the report.

    Partial runs are compared too: the report's ``notes`` say what is missing, and the plots leave it out.

    Args:
        sources: Run directories, or ``ARM=PATH`` for logs of other runs.
        out: Default for one run directory: that directory.
        recipe: Name or path of the recipe of the logs.
        scale: Scale of that recipe, ``paper`` or ``toy``.
        reward: Reward up to which time and tokens are counted. Default: :func:`default_reward`.
        window: Training steps of the smoothing. Default: :func:`default_window`.
        allow_different: Report settings that differ in the notes instead of refusing them.
        say: Called with the lines to print.

    Raises:
        Fp16PatchError: A source is not a run; settings differ that should not; ``out`` holds other files or cannot be
            written; matplotlib or jinja2 is not installed.
    """
    runs = read_inputs([str(source) for source in sources], recipe, scale)
    out = _output_directory(runs, out)
    comparison = _with_expectations(build_comparison(runs, reward, window))
    if not allow_different:
        _refuse_differences(comparison)
    with extras.required("drawing the report"):
        from fp16_patch.lab.comparison.figures import draw
        from fp16_patch.lab.comparison.html import render_html
    report = comparison.as_dict()
    with atomic_report_dir(out) as folder:
        plots = draw(comparison, folder)
        text = json.dumps(report, indent=2, allow_nan=False)
        (folder / DATA).write_text(text + "\n", encoding="utf-8")
        (folder / PAGE).write_text(render_html(comparison, plots), encoding="utf-8")
    for run in runs:
        say(render_text(comparison.reports[run.label], run.label, run.folder))
    for line in comparison.differences:
        say(f"  note: settings differ: {line}")
    say(f"\nlook next\n  {out / PAGE}   plots, precision reports, commands, versions")
    return report


def _with_expectations(comparison: Comparison) -> Comparison:
    reports = {}
    for run in comparison.runs:
        report = comparison.reports[run.label]
        expected = [check_expectation(expectation, report, run.arms) for expectation in run.recipe.expected]
        reports[run.label] = replace(report, expected=expected)
    return replace(comparison, reports=reports)


def _output_directory(runs: Sequence[Run], out: Path | None) -> Path:
    """Return the folder to write to. A run directory gets only its own report."""
    folder = runs[0].folder if len(runs) == 1 else None
    out = out or folder
    if out is None:
        raise Fp16PatchError(
            "--out is not given; several runs, or logs, have no default folder for the report",
            code="out-missing",
            next_step="add --out with a folder",
        )
    own = folder is not None and folder.resolve() == out.resolve()
    if (out / "recipe.yaml").exists() and not own:
        raise Fp16PatchError(
            f"--out {out} is a run directory, which has its own report",
            code="output-in-the-way",
            next_step="choose another --out",
        )
    return out


def _refuse_differences(comparison: Comparison) -> None:
    within = [f"{label} {line}".strip() for label, lines in comparison.arm_differences.items() for line in lines]
    if lines := [*within, *comparison.differences]:
        raise Fp16PatchError(
            "\n".join(["these runs were started with different settings", *(f"  {line}" for line in lines)]),
            code="settings-differ",
            allowed="arms that differ only in what their recipe varies; repeated runs that also differ in their seeds",
            next_step="compare runs with the same settings, or pass --allow-different to note it in the report",
        )
