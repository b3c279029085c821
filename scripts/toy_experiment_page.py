# SPDX-License-Identifier: Apache-2.0
"""Write the tables and the figure of docs/results-toy.md from the runs in benchmarks/."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, stdev

from recorded_curves import note
from toy_experiment_figure import draw
from toy_experiment_records import (
    ROOT,
    Record,
    accuracy,
    answer_kl,
    by_quarters,
    mean,
    read_plain,
    read_records,
    token_mismatch,
)

from fp16_patch import text_table

PAGE, FIGURE = ROOT / "docs" / "results-toy.md", ROOT / "docs" / "results-toy.png"
T_95 = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t by degrees of freedom, two-sided 95%."""
HEADER = (
    "algorithm",
    "tokens",
    "arm",
    "seeds",
    "steps",
    "abs(pi - mu)",
    "KL of an answer",
    "effective samples",
    "accuracy, first step",
    "by quarters",
    "last epoch",
    "of the trained weights",
    "skipped",
    "minutes",
)


def write_page() -> None:
    """Fill the page's generated parts and draw its figure."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(FIGURE)


def filled(text: str) -> str:
    """Return the page's ``text`` with tables from the recorded runs."""
    parts = {"runs": read_records(), "plain": read_plain(), "varied": read_plain(varied=True)}
    for name, records in parts.items():
        part = re.compile(f"(<!-- {name}: [^>]*-->\n).*(<!-- end of {name} -->)", re.DOTALL)
        text = part.sub(lambda found, records=records: f"{found[1]}{as_table(records)}\n{found[2]}", text)  # type: ignore[misc]
    return text


def as_table(records: Sequence[Record]) -> str:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key = (record["recipe"], record["arm"], str(record["asked"]), record.get("varied", ""))
        groups.setdefault(key, []).append(record)
    return text_table.markdown(HEADER, [_row(group) for group in groups.values()])


def _row(group: Sequence[Record]) -> tuple[str, ...]:
    ended = [record for record in group if record["status"] == "completed"]
    return (
        ", ".join(filter(None, (group[0]["algorithm"], group[0].get("varied")))),
        interval([record["answer_tokens"] for record in ended], "{:.0f}", spread=False) + note(ended, "answer_tokens"),
        group[0]["arm"],
        " ".join(str(record["seed"]) for record in ended) or f"none ({group[0]['status']})",
        " ".join(dict.fromkeys(str(record["steps"]) for record in ended)) or "-",
        interval([token_mismatch(record) for record in ended], "{:.2e}") + note(ended, "prob_diff_mean"),
        interval([answer_kl(record) for record in ended], "{:.1e}") + note(ended, "k3_kl"),
        interval([record.get("effective_samples") for record in ended], "{:.2f}", spread=False)
        + note(ended, "effective_samples"),
        interval([mean(record["reward"][:1]) for record in ended], "{:.2f}", spread=False),
        " ".join(interval(values, "{:.3f}", spread=False) for values in zip(*map(by_quarters, ended), strict=True)),
        interval([accuracy(record) for record in ended], "{:.3f}") + note(ended, "reward"),
        seeds_and_interval([record["policy_accuracy"] for record in ended]),
        " ".join("-" if record["skipped"] is None else str(record["skipped"]) for record in ended),
        " ".join(f"{record['seconds'] / 60:.0f}" for record in ended),
    )


def interval(values: Sequence[float | None], form: str, *, spread: bool = True) -> str:
    """Return the mean and, with ``spread``, half of its 95% interval over several seeds (Student's t)."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or not spread:
        return form.format(fmean(known)) if known else "-"
    half = T_95[len(known) - 1] * stdev(known) / math.sqrt(len(known))
    return f"{form.format(fmean(known))} ±{form.format(half)}"


def seeds_and_interval(values: Sequence[float | None]) -> str:
    """Return the interval, followed by the value of each seed if there are several."""
    each = " ".join("-" if value is None else f"{value:.3f}" for value in values)
    return interval(values, "{:.3f}") + (f" ({each})" if len(values) > 1 else "")
