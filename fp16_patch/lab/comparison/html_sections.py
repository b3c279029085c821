# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, as tables of its page: collapses, costs to a reward, the paper's numbers, repeated runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fp16_patch.lab.analysis import collapse
from fp16_patch.lab.analysis.time_to_reward import COSTS
from fp16_patch.lab.comparison.html_table import html_table
from fp16_patch.lab.comparison.terminal import show, show_cost, show_measured

_OFFLINE = {
    "slope_per_1000_tokens": ("slope of log π - log μ, nats per 1,000 tokens", ".3g"),
    "sequence_kl": ("KL[μ|π] of whole answers, nats", ".3g"),
    "answers": ("answers", ",.0f"),
    "tokens": ("tokens", ",.0f"),
}
_OF_REPEATS = ("mean", "lowest", "highest")


def collapses(arms: Mapping[str, Any]) -> str:
    """One row an arm: whether it collapsed, where that begins, how, and what warned of it."""
    rows = [
        (
            name,
            collapse.words(arm["collapse"]),
            "; ".join(arm["collapse"]["how"]) or "-",
            "; ".join(arm["collapse"]["warnings"]) or "-",
        )
        for name, arm in arms.items()
    ]
    how = (
        f"A smoothed reward that falls {collapse.FALL:.0%} below its peak and stays there, or a gradient norm that is "
        f"not finite {collapse.NOT_FINITE} steps in a row. A reward that came back, and mismatch that has grown "
        f"{collapse.GROWTH:g} times, are warnings."
    )
    return f"<h2>Collapse</h2>{html_table(['arm', 'collapse', 'how', 'warning'], rows)}<p class=small>{how}</p>"


def to_reward(label: str, found: Mapping[str, Any], arms: Mapping[str, Any]) -> str:
    """What each arm needed to the same reward."""
    if found["reward"] is None:
        return ""
    rows = [
        (
            words,
            *(show_cost(arm, found["arms"][of], name, ",.0f") for of, arm in arms.items()),
            show(found["ratio"][name], ".2f"),
        )
        for name, words in COSTS.items()
    ]
    head = f"<h2>{_head(label, 'To a reward of')} {found['reward']:.3g}</h2>"
    how = "To the first step whose smoothed reward is that high; the last column is BF16 over FP16."
    return f"{head}{html_table(['', *arms, 'ratio'], rows)}<p class=small>{how}</p>"


def published(label: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The run's own numbers beside the published ones."""
    if not rows:
        return ""
    header = ["arm", "number", "here", "published", "source", "verdict"]
    body = [
        (
            row["arm"],
            row["what"],
            _at(show(row["own"], ".4g"), row["own_step"]),
            _at(f"{row['published']:g} ±{row['tolerance']:g}", row["published_step"]),
            ", ".join(filter(None, (row["source"], row["note"]))),
            ": ".join(filter(None, (row["verdict"], row["why"]))),
        )
        for row in rows
    ]
    head = _head(label, "The paper's numbers")
    return f"<h2>{head}</h2><div class=many>{html_table(header, body)}</div>"


def offline(arms: Mapping[str, Any]) -> str:
    """What was measured of the log-probs that were kept."""
    if not any(arm["offline"] for arm in arms.values()):
        return ""
    found = [arm["offline"] or {} for arm in arms.values()]
    rows = [(words, *(show_measured(one, name, form) for one in found)) for name, (words, form) in _OFFLINE.items()]
    return f"<h2>Answers and their tokens</h2>{html_table(['± standard error', *arms], rows)}"


def repeated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Arms that were run several times."""
    if not rows:
        return ""
    body = [
        (f"{row['recipe']} {row['framework']} {row['arm']}", str(row["runs"]), *(f"{row[k]:.4g}" for k in _OF_REPEATS))
        for row in rows
    ]
    return f"<h2>Final reward over several runs</h2>{html_table(['arm', 'runs', *_OF_REPEATS], body)}"


def _head(label: str, words: str) -> str:
    return escape(f"{label}: {words[0].lower()}{words[1:]}" if label else words)


def _at(number: str, step: int | None) -> str:
    return number if step is None else f"{number} at step {step}"
