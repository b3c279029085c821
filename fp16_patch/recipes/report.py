# SPDX-License-Identifier: Apache-2.0
"""Compare the arms of a run directory: report.json, report.html, plots, and a short table for the terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.recipes.headline import check, headline, mean_or_none
from fp16_patch.recipes.html import render_html
from fp16_patch.recipes.runs import ArmRun, read_run
from fp16_patch.recipes.schema import Recipe
from fp16_patch.recipes.terminal import table


def compare(folder: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write ``report.json``, ``report.html`` and the plots into ``folder``; print the table; return the report.

    Works on partial runs too: what is missing is said in the report's ``notes`` and left out of the plots. Raises
    :class:`Fp16PatchError` when ``folder`` is not a run directory or matplotlib is not installed.
    """
    recipe, arms = read_run(folder)
    plots = _draw(arms, folder)
    report = build_report(recipe, arms)
    text = json.dumps(report, indent=2, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render_html(report, plots), encoding="utf-8")
    say(table(report, folder))
    return report


def build_report(recipe: Recipe, arms: list[ArmRun]) -> dict[str, Any]:
    """Everything the comparison says, as JSON-able data. Missing numbers are None, never NaN."""
    report: dict[str, Any] = {
        "recipe": {
            "name": recipe.name,
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
    report["expected"] = [check(expectation, report) for expectation in recipe.expected]
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


def _draw(arms: list[ArmRun], folder: Path) -> dict[str, Path]:
    try:
        from fp16_patch.recipes.plots import draw
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        raise Fp16PatchError(
            "the comparison draws its plots with matplotlib, which is not installed",
            next_step="pip install 'fp16-patch[plots]', then fp16-patch recipes compare " + str(folder),
        ) from error
    return draw(arms, folder)
