# SPDX-License-Identifier: Apache-2.0
"""Compare the arms of runs: report.json, report.html, plots, and a short table for the terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras
from fp16_patch.lab.analysis import collapse
from fp16_patch.lab.analysis.published import beside
from fp16_patch.lab.analysis.run_diff import Run, between_arms, between_runs
from fp16_patch.lab.analysis.seeds import repeats
from fp16_patch.lab.analysis.smoothing import smoothed, window_for
from fp16_patch.lab.analysis.summary import headline, mean_or_none
from fp16_patch.lab.analysis.time_to_reward import default_reward, reaching
from fp16_patch.lab.comparison.expectations import check
from fp16_patch.lab.comparison.html import render_html
from fp16_patch.lab.comparison.inputs import read_sources
from fp16_patch.lab.comparison.report_directory import DATA, PAGE, written_aside
from fp16_patch.lab.comparison.terminal import table
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import Series
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.mismatch.offline import measure


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

    ``sources`` are run directories, or ``ARM=PATH`` for logs of other runs, of ``recipe`` at ``scale``. For one run
    directory ``out`` is that directory by default. Several runs: the report is ``{"runs": {label: report}, ...}``.
    ``reward`` is the one to which time and tokens are counted (default: :func:`reaching.default_reward`), ``window``
    the steps of the smoothing (default: :func:`smoothing.window_for`). Works on partial runs too: what is missing is
    said in a report's ``notes`` and left out of the plots. Raises :class:`Fp16PatchError` when a source is no run, when
    settings differ that should not and ``allow_different`` is not given, when ``out`` holds files of others or cannot
    be written to, or when matplotlib is not installed.
    """
    runs = read_sources([str(source) for source in sources], recipe, scale)
    out = _out(runs, out)
    different, between = {run.label: between_arms(run) for run in runs}, between_runs(runs)
    if not allow_different:
        _refuse([*(f"{label} {line}".strip() for label, lines in different.items() for line in lines), *between])
    arms = [arm for run in runs for arm in run.arms]
    window = window or window_for(max((arm.series.steps[-1] for arm in arms if arm.series.steps), default=0))
    reward = default_reward(arms, window) if reward is None else reward
    reports = {run.label: build_report(run.recipe, run.arms, window, reward, different[run.label]) for run in runs}
    report: dict[str, Any] = {"runs": reports, "differences": between, "repeats": repeats(runs, window)}
    if len(runs) == 1:
        report = reports[runs[0].label]
    with written_aside(out) as aside:
        plots = _draw(runs, window, aside)
        text = json.dumps(report, indent=2, allow_nan=False)
        (aside / DATA).write_text(text + "\n", encoding="utf-8")
        (aside / PAGE).write_text(render_html(report, plots), encoding="utf-8")
    for run in runs:
        say(table(reports[run.label], run.label, run.folder))
    for line in between:
        say(f"  note: settings differ: {line}")
    say(f"\nlook next\n  {out / PAGE}   plots, precision reports, commands, versions")
    return report


def _out(runs: Sequence[Run], out: Path | None) -> Path:
    """The folder to write to. A run directory gets no other report than its own."""
    folders = [run.folder for run in runs]
    if out is None and (len(folders) > 1 or folders[0] is None):
        raise Fp16PatchError(
            "one report over several or imported runs has no folder", code="out-missing", next_step="give --out"
        )
    out = out or folders[0]
    assert out is not None
    alone = len(folders) == 1 and folders[0] is not None and folders[0].resolve() == out.resolve()
    if (out / "recipe.yaml").exists() and not alone:
        raise Fp16PatchError(
            f"--out {out} is a run directory with a report of its own",
            code="output-in-the-way",
            next_step="give another --out",
        )
    return out


def _refuse(different: Sequence[str]) -> None:
    if different:
        raise Fp16PatchError(
            "\n".join(["these runs were started with different settings", *(f"  {line}" for line in different)]),
            code="settings-differ",
            allowed="arms that differ as their recipe says; runs of one recipe that differ in their seeds besides",
            next_step="compare runs of the same settings, or --allow-different to have it noted in the report",
        )


def build_report(
    recipe: Recipe, arms: Sequence[ArmRun], window: int, reward: float | None, different: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything the comparison says of one run, as JSON-able data. Missing numbers are None, never NaN."""
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
        "smoothing": {"window": window, "how": f"mean over a centred window of {window} training steps"},
        "to_reward": reaching(arms, reward, window),
        "published": beside(recipe, arms, window),
        "arms": {arm.name: of_arm(arm, window) for arm in arms},
        "notes": [
            *(f"settings differ: {line}" for line in different),
            *(note for arm in arms for note in arm.notes()),
        ],
    }
    report["versions"] = next((arm["versions"] for arm in report["arms"].values() if arm["versions"]), {})
    unfinished = {arm.name for arm in arms if not arm.ended}
    report["expected"] = [check(expectation, report, unfinished) for expectation in recipe.expected]
    return report


def of_arm(arm: ArmRun, window: int) -> dict[str, Any]:
    """An arm's part of the report."""
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
            **(arm.result.get("versions") or {}),
            **(reported_versions if isinstance(reported_versions, dict) else {}),
        },
        "command": arm.command or None,
        "precision_report": arm.precision_report,
        "collapse": collapse.describe(series, window),
        "offline": None if arm.kept is None else measure(arm.kept),
        "series": {"step": series.steps, **series.values, "reward_smoothed": _smoothed_reward(series, window)},
        "evaluation": {name: {"step": steps, "score": scores} for name, (steps, scores) in series.evaluation.items()},
    }


def _smoothed_reward(series: Series, window: int) -> list[float | None]:
    steps, rewards = series.points("reward")
    curve = dict(zip(steps, smoothed(steps, rewards, window), strict=True))
    return [curve.get(step) for step in series.steps]


def _draw(runs: Sequence[Run], window: int, folder: Path) -> dict[str, Path]:
    with extras.required("drawing the plots of the comparison"):
        from fp16_patch.lab.comparison.figures import draw
    return draw(runs, window, folder)
