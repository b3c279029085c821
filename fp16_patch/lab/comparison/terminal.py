# SPDX-License-Identifier: Apache-2.0
"""Render a comparison as a short table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from fp16_patch import text_table
from fp16_patch.lab.analysis.health import LABELS
from fp16_patch.lab.analysis.published import PaperComparison
from fp16_patch.lab.analysis.summary import RewardEnds
from fp16_patch.lab.analysis.time_to_reward import COSTS, TimeToReward
from fp16_patch.lab.comparison.model import ArmReport, CheckedExpectation, RunReport
from fp16_patch.mismatch.offline import OfflineMismatch


def render_text(report: RunReport, label: str, folder: Path | None) -> str:
    """Return a table of numbers per arm, the expectations, the notes, and the logs of arms that did not complete."""
    arms, head = list(report.arms.values()), report.headline
    ends = [head.reward[name] for name in report.arms]
    rows = [
        ["steps", *(f"{arm.steps} ({arm.status})" for arm in arms), ""],
        ["mean |pi - mu|", *_means(arms, "prob_diff_mean"), show(head.prob_diff_ratio, ".1f")],
        ["KL[mu|pi] (k3), nats/token", *_means(arms, "k3_kl"), show(head.k3_kl_ratio, ".1f")],
        ["reward, first 3 -> last 3", *(_reward(arm, end) for arm, end in zip(arms, ends, strict=True)), ""],
        ["collapse", *(str(arm.collapse) for arm in arms), ""],
        *_to_reward(report),
        *_offline(arms),
        *([label, *counts, ""] for label, *counts in health_rows(arms)),
        ["skipped updates", *(show(arm.skipped_updates, "d") for arm in arms), ""],
        ["last loss scale", *(show_series(arm, "loss_scale", arm.last_loss_scale, "g") for arm in arms), ""],
        ["seconds a step, median", *(show_series(arm, "seconds", arm.seconds_per_step, ".1f") for arm in arms), ""],
    ]
    lines = [f"\n{label}{' ' * bool(label)}{report.recipe['name']}: {report.recipe['title']}\n"]
    lines.append(indent(text_table.plain(["", *report.arms, "bf16 / fp16"], rows, right=True), "  "))
    lines.append(f"  ratios: {head.how} ({head.steps_compared})")
    lines += [f"  note: {note}" for note in report.notes]
    if report.expected:
        lines.append("\nexpected")
        lines += [f"  {e.verdict:<8} {e.expected}   found {show_found(e)}" for e in report.expected]
    lines += _published(report.published)
    for name, arm in report.arms.items():
        if folder is not None and arm.status not in ("completed", "not run"):
            lines.append(f"\n{name} {arm.status}: {folder / name / 'train.log'}")
    return "\n".join(lines)


def _means(arms: Sequence[ArmReport], name: str) -> list[str]:
    return [show_series(arm, name, getattr(arm.mean, name), ".2e") for arm in arms]


def _reward(arm: ArmReport, ends: RewardEnds) -> str:
    return with_non_finite(arm, "reward", f"{show(ends.first3, '.3f')} -> {show(ends.last3, '.3f')}")


def _to_reward(report: RunReport) -> list[list[str]]:
    found = report.to_reward
    if found.reward is None:
        return []
    return [
        [
            f"{label} to reward {found.reward:.3g}",
            *(show_cost(found, name, arm, cost, ".4g") for name, arm in report.arms.items()),
            show(getattr(found.ratio, cost), ".2f"),
        ]
        for cost, label in COSTS.items()
    ]


def _offline(arms: Sequence[ArmReport]) -> list[list[str]]:
    if not any(arm.offline for arm in arms):
        return []
    labels = {"slope of log-ratio per 1000 tokens": "slope_per_1000_tokens", "KL of whole answers, nats": "sequence_kl"}
    if any(arm.offline.non_finite_answers for arm in arms if arm.offline):
        labels["answers left out, not finite"] = "non_finite_answers"
    return [[label, *(show_measured(arm.offline, name, ".3g") for arm in arms), ""] for label, name in labels.items()]


def _published(rows: Sequence[PaperComparison]) -> list[str]:
    """Return one line per published number, or a single line if the run is at toy scale."""
    if not rows:
        return []
    if all(row.why == "toy scale" for row in rows):
        return [f"\n{len(rows)} published numbers are not comparable: toy scale"]
    lines = ["\npublished"]
    for row in rows:
        step = "" if row.published_step is None else f" @{row.published_step}"
        verdict = f"{row.verdict} ({row.why})" if row.why else row.verdict
        own = show(row.own, ".4g")
        lines.append(f"  {row.arm:<8} {row.what}: {row.published:g} ±{row.tolerance:g}{step}, here {own}: {verdict}")
    return lines


def show(value: Any, form: str) -> str:
    """Return the formatted number, or ``-`` for None."""
    return "-" if value is None else format(value, form)


def show_series(arm: ArmReport, name: str, value: float | None, form: str) -> str:
    """Return a number computed from a series, and at how many of its steps that was not finite."""
    return with_non_finite(arm, name, show(value, form))


def with_non_finite(arm: ArmReport, name: str, text: str) -> str:
    """Add to ``text`` at how many steps the series was not finite, if at any."""
    return f"{text}, {arm.non_finite[name]}" if name in arm.non_finite else text


def show_found(expectation: CheckedExpectation) -> str:
    """Return the value that an expectation is checked against, and which of its series are not finite."""
    return "; ".join(filter(None, [show(expectation.value, ".4g"), expectation.why]))


def health_rows(arms: Sequence[ArmReport]) -> list[list[str]]:
    """Return a row with a cell per arm for each count of :data:`LABELS` that is above 0 in an arm."""
    names = [name for name in LABELS if any(name in arm.health for arm in arms)]
    return [[LABELS[name], *(str(arm.health.get(name, "-")) for arm in arms)] for name in names]


def show_cost(found: TimeToReward, name: str, arm: ArmReport, cost: str, form: str) -> str:
    """Return what the arm called ``name`` took to reach the reward."""
    if (costs := found.arms[name]) is None:
        return with_non_finite(arm, "reward", "not reached" if arm.steps else "-")
    series = "reward" if cost == "steps" else cost
    return show_series(arm, series, getattr(costs, cost), form)


def show_measured(offline: OfflineMismatch | None, name: str, form: str) -> str:
    """Return a number of the offline measurement, with its standard error if it has one."""
    error = getattr(offline, f"{name}_standard_error", None)
    return show(getattr(offline, name, None), form) + ("" if error is None else f" ±{error:.2g}")
