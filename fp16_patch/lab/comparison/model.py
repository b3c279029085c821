# SPDX-License-Identifier: Apache-2.0
"""The comparison as data: computed once, then rendered to JSON, the terminal, figures and HTML.

Field names are the keys of ``report.json``, so they do not change. Missing numbers are None, never NaN. ``non_finite``
of an arm names the series that were logged as NaN or infinite, and where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from fp16_patch.lab.analysis.collapse import Collapse, detect_collapse
from fp16_patch.lab.analysis.health import HealthCount, count_health
from fp16_patch.lab.analysis.published import PaperComparison, compare_with_paper
from fp16_patch.lab.analysis.run_diff import describe_arm_differences, describe_run_differences
from fp16_patch.lab.analysis.seeds import RepeatedArm, summarize_seeds
from fp16_patch.lab.analysis.smoothing import default_window, smooth
from fp16_patch.lab.analysis.summary import Headline, mean_or_none, summarize
from fp16_patch.lab.analysis.time_to_reward import TimeToReward, default_reward, measure_time_to_reward
from fp16_patch.lab.logs.runs import ArmRun, Run
from fp16_patch.lab.logs.series import NonFiniteSteps, Series
from fp16_patch.mismatch.offline import OfflineMismatch, measure_offline

RECIPE_SECTIONS = ("reproduces", "model", "data", "algorithm", "hardware")


@dataclass(frozen=True)
class Means:
    """Means over all steps with a finite value."""

    prob_diff_mean: float | None
    k3_kl: float | None
    grad_norm: float | None


@dataclass(frozen=True)
class Extremes:
    """Extremes over all steps with a finite value."""

    pi_minus_mu_max: float | None
    pi_minus_mu_min: float | None


@dataclass(frozen=True)
class ArmReport:
    """What the comparison reports of one arm. ``health`` holds the counts that are above 0."""

    precision: str
    status: str
    error: str | None
    steps: int
    seconds: float | None
    seconds_per_step: float | None
    mean: Means
    extreme: Extremes
    skipped_updates: int | None
    last_loss_scale: float | None
    versions: Mapping[str, Any]
    command: str | None
    precision_report: Any
    collapse: Collapse
    offline: OfflineMismatch | None
    series: Mapping[str, Sequence[float | None]]
    evaluation: Mapping[str, Mapping[str, Sequence[float]]]
    non_finite: Mapping[str, NonFiniteSteps]
    health: Mapping[str, HealthCount]


@dataclass(frozen=True)
class CheckedExpectation:
    """An expectation of the recipe with the report's value. ``met`` is None if unknown.

    ``why`` says which series of the value are not finite in how many steps; empty if all are finite.
    """

    expected: str
    metric: str
    at_least: float | None
    at_most: float | None
    value: float | None
    met: bool | None
    verdict: str
    source: str
    why: str = ""


@dataclass(frozen=True)
class RunReport:
    """What the comparison reports of one run."""

    recipe: Mapping[str, Any]
    headline: Headline
    smoothing: Mapping[str, Any]
    to_reward: TimeToReward
    published: list[PaperComparison]
    arms: dict[str, ArmReport]
    notes: list[str]
    versions: Mapping[str, Any]
    expected: list[CheckedExpectation]


@dataclass(frozen=True)
class Comparison:
    """The compared runs, and the report of each under the run's label.

    ``arm_differences`` are those of settings within a run, by label; ``differences`` those between runs.
    """

    runs: list[Run]
    reports: dict[str, RunReport]
    window: int
    arm_differences: dict[str, list[str]]
    differences: list[str]
    repeats: list[RepeatedArm]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``report.json``: one run's report, or ``{"runs": {label: report}, ...}`` of several."""
        reports = {label: asdict(report) for label, report in self.reports.items()}
        if len(reports) == 1:
            return reports[self.runs[0].label]
        return {"runs": reports, "differences": self.differences, "repeats": [asdict(row) for row in self.repeats]}


def build_comparison(runs: list[Run], reward: float | None = None, window: int | None = None) -> Comparison:
    """Analyse the runs. ``reward`` and ``window`` default to :func:`default_reward` and :func:`default_window`."""
    arms = [arm for run in runs for arm in run.arms]
    window = window or default_window(max((arm.series.steps[-1] for arm in arms if arm.series.steps), default=0))
    reward = default_reward(arms, window) if reward is None else reward
    differences = {run.label: describe_arm_differences(run) for run in runs}
    return Comparison(
        runs=runs,
        reports={run.label: _run_report(run, window, reward, differences[run.label]) for run in runs},
        window=window,
        arm_differences=differences,
        differences=describe_run_differences(runs),
        repeats=summarize_seeds(runs, window),
    )


def _run_report(run: Run, window: int, reward: float | None, differences: Sequence[str]) -> RunReport:
    recipe, arms = run.recipe, run.arms
    reports = {arm.name: _arm_report(arm, window) for arm in arms}
    return RunReport(
        recipe={
            "name": recipe.name,
            "framework": arms[0].framework,
            "title": recipe.title,
            **{section: asdict(getattr(recipe, section)) for section in RECIPE_SECTIONS},
        },
        headline=summarize(arms),
        smoothing={"window": window, "how": f"mean over a centred window of {window} training steps"},
        to_reward=measure_time_to_reward(arms, reward, window),
        published=[row for arm in arms for row in compare_with_paper(recipe, arm, reports[arm.name].offline, window)],
        arms=reports,
        notes=[*(f"settings differ: {line}" for line in differences), *(note for arm in arms for note in arm.notes())],
        versions=next((arm.versions for arm in reports.values() if arm.versions), {}),
        expected=[],
    )


def _arm_report(arm: ArmRun, window: int) -> ArmReport:
    series = arm.series
    reported_versions = (arm.precision_report or {}).get("versions")
    seconds = series.known("seconds")
    return ArmReport(
        precision=arm.precision,
        status=arm.status,
        error=arm.result.get("error"),
        steps=len(series.steps),
        seconds=arm.result.get("seconds"),
        seconds_per_step=median(seconds) if seconds else None,  # the first step is slow
        mean=Means(*(mean_or_none(series.known(name)) for name in ("prob_diff_mean", "k3_kl", "grad_norm"))),
        extreme=Extremes(
            pi_minus_mu_max=max(series.known("pi_minus_mu_max"), default=None),
            pi_minus_mu_min=min(series.known("pi_minus_mu_min"), default=None),
        ),
        skipped_updates=arm.skipped_updates,
        last_loss_scale=next(reversed(series.known("loss_scale")), None),
        versions={
            **(arm.result.get("versions") or {}),
            **(reported_versions if isinstance(reported_versions, dict) else {}),
        },
        command=arm.command or None,
        precision_report=arm.precision_report,
        collapse=detect_collapse(series, window),
        offline=None if arm.log_probs is None else measure_offline(arm.log_probs),
        series={"step": series.steps, **series.values, "reward_smoothed": _smoothed_reward(series, window)},
        evaluation={name: {"step": steps, "score": scores} for name, (steps, scores) in series.evaluation.items()},
        non_finite=series.non_finite,
        health=count_health(series),
    )


def _smoothed_reward(series: Series, window: int) -> list[float | None]:
    steps, rewards = series.points("reward")
    curve = dict(zip(steps, smooth(steps, rewards, window), strict=True))
    return [curve.get(step) for step in series.steps]
