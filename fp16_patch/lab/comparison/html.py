# SPDX-License-Identifier: Apache-2.0
"""A comparison, of one run or several, as one HTML file: no scripts, no network, the plots inside."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from fp16_patch.lab.comparison.html_sections import collapses, offline, published, repeated, to_reward
from fp16_patch.lab.comparison.html_table import html_table
from fp16_patch.lab.comparison.report_directory import TITLE
from fp16_patch.lab.comparison.terminal import show

_PLOTS = {
    "prob_diff": "How far the training policy's probability of a sampled token is from the rollout's, on average.",
    "kl": "The same distance as a divergence of the two policies.",
    "pi_minus_mu": "The worst tokens of each step, above and below.",
    "loss_scale": "What the dynamic loss scaler did. A skipped update is its normal answer to an overflow.",
}
_OFFLINE = "Left: each sampled token. Right: each answer, and the least-squares line through them."
_KIND = {True: "met", False: "unmet", None: "unknown"}


def render_html(report: Mapping[str, Any], plots: Mapping[str, Path]) -> str:
    """The page. ``report`` is what report.json holds, ``plots`` maps names to PNG files."""
    runs: Mapping[str, Mapping[str, Any]] = report.get("runs") or {"": report}
    arms = {f"{label} {name}".strip(): arm for label, run in runs.items() for name, arm in run["arms"].items()}
    first = next(iter(runs.values()))
    name = " and ".join(run["recipe"]["name"] for run in runs.values())
    parts = [
        f"<h1>{escape(first['recipe']['title'])}</h1>" if len(runs) == 1 else f"<h1>{escape(' and '.join(runs))}</h1>",
        *(_summary(label, run) for label, run in runs.items()),
        *map(_note, (f"settings differ: {line}" for line in report.get("differences", ()))),
        repeated(report.get("repeats", ())),
        "<h2>The figure</h2>",
        _figure(plots["figure"], f"Reward and mismatch are a {first['smoothing']['how']}; faint, what was logged."),
        collapses(arms),
        *(to_reward(label, run["to_reward"], run["arms"]) for label, run in runs.items()),
        *(published(label, run["published"]) for label, run in runs.items()),
        offline(arms),
        _figure(plots["offline"], _OFFLINE) if "offline" in plots else "",
        "<h2>Step by step</h2>",
        "".join(_figure(plots[plot], caption) for plot, caption in _PLOTS.items() if plot in plots),
        "<h2>Runs</h2>",
        _runs(arms),
        "<h2>Precision really in force</h2>",
        _precision(arms),
        "<h2>What was run</h2>",
        *(_about(run["recipe"]) for run in runs.values()),
        _commands(arms),
        _versions(arms),
    ]
    style = resources.files("fp16_patch.lab.comparison").joinpath("report.css").read_text(encoding="utf-8")
    return (
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(name)}{TITLE}\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, parts))}\n</main></body></html>\n"
    )


def _summary(label: str, run: Mapping[str, Any]) -> str:
    """What one run is, its few numbers, and whether they are the expected ones."""
    head = f"<h2>{escape(label)}: {escape(run['recipe']['title'])}</h2>" if label else ""
    what = f"<p class=lead>{escape(run['recipe']['reproduces']['what'])}</p>"
    notes = "".join(map(_note, run["notes"]))
    return head + what + _headline(run) + notes + _expected(run["expected"], "h3" if label else "h2")


def _note(words: str) -> str:
    return f"<p class=note>{escape(words)}</p>"


def _headline(report: Mapping[str, Any]) -> str:
    head = report["headline"]
    cards = [
        _card(_times(head["prob_diff_ratio"]), "mean |&pi; &minus; &mu;|, BF16 over FP16"),
        _card(_times(head["k3_kl_ratio"]), "KL[&mu;|&pi;], BF16 over FP16"),
    ]
    for arm, ends in head["reward"].items():
        change = f"{show(ends['first3'], '.2f')} &rarr; {show(ends['last3'], '.2f')}"
        cards.append(_card(change, f"reward in {escape(arm)}, first 3 and last 3 steps"))
    how = f"Ratios: {escape(head['how'])} ({head['steps_compared']} steps)."
    return f"<div class=cards>{''.join(cards)}</div><p class=small>{how}</p>"


def _times(ratio: float | None) -> str:
    return "&ndash;" if ratio is None else f"{ratio:.1f}&times;"


def _card(big: str, words: str) -> str:
    return f"<div class=card><b>{big}</b><span>{words}</span></div>"


def _expected(checks: Sequence[Mapping[str, Any]], level: str) -> str:
    if not checks:
        return ""
    body = ""
    for item in checks:
        words, kind = item["verdict"].lower(), _KIND[item["met"]]
        cells = (item["expected"], show(item["value"], ".4g"), item["source"])
        body += f"<tr><td class={kind}>{words}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>"
    head = "<tr><th></th><th>expected</th><th>found</th><th>bound from</th></tr>"
    return f"<{level}>Expected and found</{level}><table class=checks>{head}{body}</table>"


def _figure(plot: Path, caption: str) -> str:
    data = base64.b64encode(plot.read_bytes()).decode("ascii")
    return (
        f"<figure><img alt='{escape(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _runs(arms: Mapping[str, Any]) -> str:
    rows = [
        ("precision", *(arm["precision"] for arm in arms.values())),
        ("status", *(arm["status"] for arm in arms.values())),
        ("training steps", *(str(arm["steps"]) for arm in arms.values())),
        ("wall time, minutes", *(show(_minutes(arm["seconds"]), ".1f") for arm in arms.values())),
        ("seconds a step, median", *(show(arm["seconds_per_step"], ".2f") for arm in arms.values())),
        ("mean |π - μ|", *(show(arm["mean"]["prob_diff_mean"], ".3e") for arm in arms.values())),
        ("KL[μ|π], k3, nats per token", *(show(arm["mean"]["k3_kl"], ".3e") for arm in arms.values())),
        ("largest π - μ", *(show(arm["extreme"]["pi_minus_mu_max"], "+.2e") for arm in arms.values())),
        ("smallest π - μ", *(show(arm["extreme"]["pi_minus_mu_min"], "+.2e") for arm in arms.values())),
        ("mean gradient norm", *(show(arm["mean"]["grad_norm"], ".3f") for arm in arms.values())),
        ("last loss scale", *(show(arm["last_loss_scale"], "g") for arm in arms.values())),
        ("skipped updates", *(show(arm["skipped_updates"], "d") for arm in arms.values())),
    ]
    errors = "".join(
        f"<h3>How {escape(name)} ended</h3><pre>{escape(arm['error'])}</pre>"
        for name, arm in arms.items()
        if arm["error"]
    )
    return html_table(["", *arms], rows) + errors


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def _precision(arms: Mapping[str, Any]) -> str:
    """One table a role, the arms side by side; rows where they differ stand out."""
    reports = {name: arm["precision_report"] or {} for name, arm in arms.items()}
    roles = {name: report.get("roles") or {} for name, report in reports.items()}
    parts = [html_table(["", *arms], [("the flag", *(_flat(report.get("flag")) for report in reports.values()))])]
    for role in _union(roles.values()):
        rows_of = {name: found.get(role) or {} for name, found in roles.items()}
        rows = [
            (row.replace("_", " "), *(_flat(found.get(row)) for found in rows_of.values()))
            for row in _union(rows_of.values())
        ]
        parts.append(f"<h3>{escape(role)}</h3>{html_table(['', *arms], rows, mark_differences=True)}")
    proofs = {name: _proofs(report) for name, report in reports.items()}
    rows = [(process, *(proof.get(process, "-") for proof in proofs.values())) for process in _union(proofs.values())]
    parts.append(f"<h3>patches, by the ledger of each process</h3>{html_table(['', *arms], rows)}")
    return "".join(parts)


def _proofs(report: Mapping[str, Any]) -> dict[str, str]:
    """Each process that reported, with the outcomes its ledger counts."""
    proofs = {}
    for process in report.get("processes") or []:
        outcomes = Counter(str(entry["outcome"]) for entry in process.get("ledger") or [])
        proofs[str(process["process"])] = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()) or "none"
    return proofs


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _flat(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(item)}" for key, item in value.items())
    return str(value)


def _about(recipe: Mapping[str, Any]) -> str:
    rows = [
        (section, "; ".join(f"{key}: {value}" for key, value in recipe[section].items() if value not in (None, "")))
        for section in ("reproduces", "model", "data", "algorithm", "hardware")
    ]
    return html_table(["recipe", recipe["name"]], rows)


def _commands(arms: Mapping[str, Any]) -> str:
    return "".join(
        f"<details><summary>command of {escape(name)}</summary><pre>{escape(arm['command'])}</pre></details>"
        for name, arm in arms.items()
        if arm["command"]
    )


def _versions(arms: Mapping[str, Any]) -> str:
    versions = {name: arm["versions"] for name, arm in arms.items()}
    rows = [(key, *(_flat(found.get(key)) for found in versions.values())) for key in _union(versions.values())]
    return html_table(["versions", *arms], rows, mark_differences=True)
