# SPDX-License-Identifier: Apache-2.0
"""Compare the arms of run directories: report.json, report.html, plots, and a short table for the terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.recipes.headline import check, headline, mean_or_none
from fp16_patch.recipes.html import render_html
from fp16_patch.recipes.runs import ArmRun, read_run
from fp16_patch.recipes.schema import Recipe
from fp16_patch.recipes.terminal import table


def compare(*folders: Path, out: Path | None = None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write ``report.json``, ``report.html`` and the plots into ``out``; print the table; return the report.

    One run directory: ``out`` is that directory by default. Several: the report is ``{"runs": {label: report}}``.
    Works on partial runs too: what is missing is said in a report's ``notes`` and left out of the plots. Raises
    :class:`Fp16PatchError` when a folder is not a run directory or matplotlib is not installed.
    """
    if out is None and len(folders) > 1:
        raise Fp16PatchError("one report over several runs has no folder", next_step="give --out")
    out = out or folders[0]
    if (out / "recipe.yaml").exists() and [out.resolve()] != [folder.resolve() for folder in folders]:
        raise Fp16PatchError(f"--out {out} is a run directory with a report of its own", next_step="give another --out")
    found = [read_run(folder) for folder in folders]
    labels = _labels(folders, [arms[0].framework for _, arms in found])
    runs = {label: build_report(recipe, arms) for label, (recipe, arms) in zip(labels, found, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    plots = _draw({label: arms for label, (_, arms) in zip(labels, found, strict=True)}, out)
    report: dict[str, Any] = {"runs": runs} if len(runs) > 1 else runs[labels[0]]
    text = json.dumps(report, indent=2, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(render_html(runs, plots), encoding="utf-8")
    for label, folder in zip(labels, folders, strict=True):
        say(table(runs[label], label, folder))
    say(f"\nlook next\n  {out / 'report.html'}   plots, precision reports, commands, versions")
    return report


def _labels(folders: Sequence[Path], frameworks: Sequence[str]) -> list[str]:
    """What tells the runs apart: the framework or, where two ran on the same, the folder; nothing for a single run."""
    if len(folders) == 1:
        return [""]
    names = [list(frameworks), [folder.resolve().name for folder in folders], [str(folder) for folder in folders]]
    for labels in names:
        if len(set(labels)) == len(folders):
            return labels
    raise Fp16PatchError("a run directory is given twice", next_step="give each once")


def build_report(recipe: Recipe, arms: list[ArmRun]) -> dict[str, Any]:
    """Everything the comparison says, as JSON-able data. Missing numbers are None, never NaN."""
    report: dict[str, Any] = {
        "recipe": {
            "name": recipe.name,
            "framework": arms[0].framework,
            "title": recipe.title,
            "reproduces": dataclasses.asdict(recipe.reproduces),
            "model": dataclasses.asdict(recipe.model),
            "data": dataclasses.asdict(recipe.data),
            "algorithm": dataclasses.asdict(recipe.algorithm),
            "hardware": dataclasses.asdict(recipe.hardware),
        },
        "headline": headline(arms),
        "arms": {arm.name: _arm(arm) for arm in arms},
        "notes": [note for arm in arms for note in arm.notes()],
    }
    report["versions"] = next((arm["versions"] for arm in report["arms"].values() if arm["versions"]), {})
    unfinished = {arm.name for arm in arms if arm.status != "completed"}
    report["expected"] = [check(expectation, report, unfinished) for expectation in recipe.expected]
    return report


def _arm(arm: ArmRun) -> dict[str, Any]:
    series = arm.series
    means = {name: mean_or_none(series.known(name)) for name in ("prob_diff_mean", "k3_kl", "grad_norm")}
    extremes = {
        "pi_minus_mu_max": max(series.known("pi_minus_mu_max"), default=None),
        "pi_minus_mu_min": min(series.known("pi_minus_mu_min"), default=None),
    }
    reported_versions = (arm.precision_report or {}).get("versions")
    return {
        "precision": arm.precision,
        "status": arm.status,
        "error": arm.result.get("error"),
        "steps": len(series.steps),
        "seconds": arm.result.get("seconds"),
        "seconds_per_step": median(seconds) if (seconds := series.known("seconds")) else None,  # the first is slow
        "mean": means,
        "extreme": extremes,
        "skipped_updates": arm.skipped_updates,
        "last_loss_scale": next(reversed(series.known("loss_scale")), None),
        "versions": {
            **arm.result.get("versions", {}),
            **(reported_versions if isinstance(reported_versions, dict) else {}),
        },
        "command": arm.result.get("command"),
        "precision_report": arm.precision_report,
        "series": {"step": series.steps, **series.values},
    }


def _draw(runs: Mapping[str, Sequence[ArmRun]], folder: Path) -> dict[str, Path]:
    try:
        from fp16_patch.recipes.plots import draw
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        raise Fp16PatchError(
            "the comparison draws its plots with matplotlib, which is not installed",
            next_step="pip install 'fp16-patch[plots]', then fp16-patch recipes compare ...",
        ) from error
    return draw(runs, folder)
