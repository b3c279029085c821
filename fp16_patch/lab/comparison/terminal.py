# SPDX-License-Identifier: Apache-2.0
"""A comparison as a short table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp16_patch.lab.analysis import collapse, time_to_reward


def table(report: Mapping[str, Any], label: str, folder: Path | None) -> str:
    """Rows of numbers per arm, what was expected, what is missing, and the logs of arms that ended badly."""
    arms: Mapping[str, Any] = report["arms"]
    head, reward = report["headline"], report["headline"]["reward"]
    rows = [
        ["", *arms, "bf16 / fp16"],
        ["steps", *(f"{arm['steps']} ({arm['status']})" for arm in arms.values()), ""],
        ["mean |pi - mu|", *_means(arms, "prob_diff_mean", ".2e"), show(head["prob_diff_ratio"], ".1f")],
        ["KL[mu|pi] (k3), nats/token", *_means(arms, "k3_kl", ".2e"), show(head["k3_kl_ratio"], ".1f")],
        [
            "reward, first 3 -> last 3",
            *(f"{show(reward[a]['first3'], '.3f')} -> {show(reward[a]['last3'], '.3f')}" for a in arms),
            "",
        ],
        ["collapse", *(collapse.words(arm["collapse"]) for arm in arms.values()), ""],
        *_to_reward(report["to_reward"], arms),
        *_offline(arms),
        ["skipped updates", *(show(arm["skipped_updates"], "d") for arm in arms.values()), ""],
        ["last loss scale", *(show(arm["last_loss_scale"], "g") for arm in arms.values()), ""],
        ["seconds a step, median", *(show(arm["seconds_per_step"], ".1f") for arm in arms.values()), ""],
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"\n{label}{' ' * bool(label)}{report['recipe']['name']}: {report['recipe']['title']}\n"]
    lines += ["  " + "   ".join(_padded(row, widths)).rstrip() for row in rows]
    lines.append(f"  ratios: {head['how']} ({head['steps_compared']})")
    lines += [f"  note: {note}" for note in report["notes"]]
    if report["expected"]:
        lines.append("\nexpected")
        lines += [f"  {e['verdict']:<8} {e['expected']}   found {show(e['value'], '.4g')}" for e in report["expected"]]
    lines += _published(report["published"])
    for name, arm in arms.items():
        if folder is not None and arm["status"] not in ("completed", "not run"):
            lines.append(f"\n{name} {arm['status']}: {folder / name / 'train.log'}")
    return "\n".join(lines)


def _to_reward(found: Mapping[str, Any], arms: Mapping[str, Any]) -> list[list[str]]:
    if found["reward"] is None:
        return []
    return [
        [
            f"{words} to reward {found['reward']:.3g}",
            *(show_cost(arm, found["arms"][of], name, ".4g") for of, arm in arms.items()),
            show(found["ratio"][name], ".2f"),
        ]
        for name, words in time_to_reward.COSTS.items()
    ]


def _offline(arms: Mapping[str, Any]) -> list[list[str]]:
    if not any(arm["offline"] for arm in arms.values()):
        return []
    rows = {"slope of log-ratio per 1000 tokens": "slope_per_1000_tokens", "KL of whole answers, nats": "sequence_kl"}
    return [
        [words, *(show_measured(arm["offline"] or {}, name, ".3g") for arm in arms.values()), ""]
        for words, name in rows.items()
    ]


def _published(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """At toy scale there is nothing to compare, and one line says so."""
    if not rows:
        return []
    if all(row["why"] == "toy scale" for row in rows):
        return [f"\n{len(rows)} published numbers are not comparable: toy scale"]
    lines = ["\npublished"]
    for row in rows:
        step = "" if row["published_step"] is None else f" @{row['published_step']}"
        shown = f"{row['published']:g} ±{row['tolerance']:g}{step}"
        verdict = " ".join(filter(None, (row["verdict"], row["why"] and f"({row['why']})")))
        lines.append(f"  {row['arm']:<8} {row['what']}: {shown}, here {show(row['own'], '.4g')}: {verdict}")
    return lines


def show(value: Any, form: str) -> str:
    """The number in that format, ``-`` where there is none."""
    return "-" if value is None else format(value, form)


def show_cost(arm: Mapping[str, Any], costs: Mapping[str, Any] | None, name: str, form: str) -> str:
    """What the arm took to the reward. One without a step has not been on its way."""
    if costs is None:
        return "not reached" if arm["steps"] else "-"
    return show(costs[name], form)


def show_measured(found: Mapping[str, Any], name: str, form: str) -> str:
    """The number with its standard error, where it has one."""
    error = found.get(f"{name}_standard_error")
    return show(found.get(name), form) + ("" if error is None else f" ±{error:.2g}")


def _means(arms: Mapping[str, Any], name: str, form: str) -> list[str]:
    return [show(arm["mean"][name], form) for arm in arms.values()]


def _padded(row: list[str], widths: list[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
