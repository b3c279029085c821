# SPDX-License-Identifier: Apache-2.0
"""The tables and the figure of docs/results-toy.md, out of the runs kept in benchmarks/."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from fp16_patch.cli import table
from fp16_patch.recipes.loading import find, load
from fp16_patch.recipes.plot_style import COLOURS

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "toy_experiment.jsonl"
PLAIN = ROOT / "benchmarks" / "dose_response.jsonl"
PAGE, FIGURE = ROOT / "docs" / "results-toy.md", ROOT / "docs" / "results-toy.png"
TOY = {"bf16": COLOURS["bf16"][0], "fp16": COLOURS["fp16"][0]}
ALGORITHMS = {"GRPO": COLOURS["fp16"][1], "PG-Seq-IS": COLOURS["bf16"][2]}
MARKS = {
    "dose-response": "o",
    "dose-response-pg-seq-is": "s",
    "dose-response-long": "^",
    "dose-response-long-pg-seq-is": "D",
}
AN_EPOCH = 10
"""Steps in which every problem is asked once: what training accuracy is averaged over."""
PAPER_TOKEN = {"BF16": (0.004, 0.0155), "FP16": (0.0006, 0.0008)}
"""Mean |pi - mu| of a 1.5B model in verl, by eye off Figure 3 of arXiv 2510.26788; BF16: from start to collapse."""
PAPER_ANSWER = {"BF16": (7.2, 8.1), "FP16": (0.3, 0.34)}
"""KL[mu|pi] of its answers of up to 32,000 tokens, as Figure 5 states it: 7.64 and 0.32; drawn as bands to be seen."""
Y_TICKS = (0.05, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97)
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
    "accuracy, by quarters",
    "last epoch",
    "of the trained weights",
    "skipped",
    "minutes",
)

Record = Mapping[str, Any]
Measure = Callable[[Record], float | None]


def read_records() -> list[dict[str, Any]]:
    """The runs of the recipes, in the order of their arms, and seeds."""
    arms = list(load(find("dose-response")).arms)
    return sorted(_lines(RUNS), key=lambda r: (r["recipe"], arms.index(r["arm"]), -r["asked"], r["seed"]))


def read_plain() -> list[dict[str, Any]]:
    """The runs without the frameworks, as if they were those of a recipe."""
    records = [
        {
            **record,
            "arm": f"bits-{record['bits']}" if record["bits"] else "fp32",
            "status": "completed",
            "asked": record["steps"],
            "skipped": None,
            "answer_tokens": fmean(record["answer_tokens"]),
        }
        for record in _lines(PLAIN)
    ]
    return sorted(records, key=lambda r: (r["recipe"], -(r["bits"] or math.inf), r["seed"]))


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = []
    for record in map(json.loads, lines):
        recipe = load(find(record["recipe"]))
        found.append({**record, "algorithm": recipe.algorithm.name, "world": recipe.world})
    return found


def write_page() -> None:
    """Fill the page's generated parts and draw its figure."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(FIGURE)


def filled(text: str) -> str:
    """The page's ``text`` with its tables as the kept runs make them."""
    for name, records in (("runs", read_records()), ("plain", read_plain())):
        part = re.compile(f"(<!-- {name}: [^>]*-->\n).*(<!-- end of {name} -->)", re.DOTALL)
        text = part.sub(lambda found, records=records: f"{found[1]}{as_table(records)}\n{found[2]}", text)  # type: ignore[misc]
    return text


def as_table(records: Sequence[Record]) -> str:
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record["recipe"], record["arm"], record["asked"]), []).append(record)
    return table.markdown(HEADER, [_row(group) for group in groups.values()])


def _row(group: Sequence[Record]) -> tuple[str, ...]:
    ended = [record for record in group if record["status"] == "completed"]
    return (
        group[0]["algorithm"],
        f"{fmean(record['answer_tokens'] for record in ended):.0f}" if ended else "-",
        group[0]["arm"],
        " ".join(str(record["seed"]) for record in ended) or f"none ({group[0]['status']})",
        " ".join(dict.fromkeys(str(record["steps"]) for record in ended)) or "-",
        interval([token_mismatch(record) for record in ended], "{:.2e}"),
        interval([answer_kl(record) for record in ended], "{:.1e}"),
        " ".join(interval(values, "{:.3f}", spread=False) for values in zip(*map(by_quarters, ended), strict=True)),
        interval([accuracy(record) for record in ended], "{:.3f}"),
        seeds_and_interval([record["policy_accuracy"] for record in ended]),
        " ".join("-" if record["skipped"] is None else str(record["skipped"]) for record in ended),
        " ".join(f"{record['seconds'] / 60:.0f}" for record in ended),
    )


def interval(values: Sequence[float | None], form: str, *, spread: bool = True) -> str:
    """Mean and, with ``spread``, half of its 95% interval over seeds (Student's t) where there are several."""
    known = [value for value in values if value is not None]
    if len(known) < 2 or not spread:
        return form.format(fmean(known)) if known else "-"
    half = T_95[len(known) - 1] * stdev(known) / math.sqrt(len(known))
    return f"{form.format(fmean(known))} ±{form.format(half)}"


def seeds_and_interval(values: Sequence[float | None]) -> str:
    """The interval, and behind it each seed's value where there are several."""
    each = " ".join("-" if value is None else f"{value:.3f}" for value in values)
    return interval(values, "{:.3f}") + (f" ({each})" if len(values) > 1 else "")


def accuracy(record: Record) -> float:
    """Training accuracy over the last epoch, as the (rounded) rollout samples it."""
    return fmean(record["reward"][-AN_EPOCH:])


def by_quarters(record: Record) -> list[float]:
    """Training accuracy over each quarter of the run."""
    rewards = record["reward"]
    ends = [len(rewards) * i // 4 for i in range(5)]
    return [fmean(rewards[start:end]) for start, end in pairwise(ends)]


def token_mismatch(record: Record) -> float | None:
    """Mean |pi - mu| over the steps of a run; None where the algorithm logs none."""
    return _mean(record["prob_diff_mean"])


def answer_kl(record: Record) -> float | None:
    """KL[mu|pi] (k3) of a whole answer in nats, mean over the steps: its tokens' add up."""
    kl = _mean(record["k3_kl"])
    return None if kl is None else kl * record["answer_tokens"]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def draw(file: Path) -> None:
    """Accuracy of the trained weights against the mismatch measured, by the token and by the answer."""
    runs = {"verl and vLLM, 100 steps": read_records(), "plain torch, 60 steps": read_plain()}
    figure = Figure(figsize=(16, 4.8), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, measure, paper in ((left, token_mismatch, PAPER_TOKEN), (right, answer_kl, PAPER_ANSWER)):
            for precision, band in paper.items():
                colour, label = TOY[precision.lower()], f"paper, 1.5B model, {precision}"
                axes.axvspan(*band, color=colour, alpha=0.2, lw=1.5, label=label)
            for where, records in runs.items():
                _points(axes, where, records, [record for group in runs.values() for record in group], measure)
            axes.set_xscale("log")
            axes.grid(color="#e4e4e4")
        left.set(xlabel="mean |π - μ| of a token", ylabel="accuracy of the trained weights, in FP32")
        left.set_yscale("logit")  # what solves nearly all, and nearly nothing, is told apart
        left.set_ylim(0.03, 0.98)
        left.yaxis.set_major_locator(FixedLocator(Y_TICKS))
        left.yaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in Y_TICKS]))
        left.yaxis.set_minor_locator(NullLocator())
        right.set(xlabel="KL[μ|π] of an answer, nats")
        figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
        figure.savefig(file)


def _points(axes: Axes, where: str, records: Sequence[Record], everything: Sequence[Record], measure: Measure) -> None:
    """A point for each run, filled where the frameworks ran it; its arm beside it, and a line at BF16 and FP16."""
    places: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        same = [other for other in everything if all(other[key] == record[key] for key in ("arm", "world"))]
        x = measure(record) or _mean([measure(other) for other in same])  # an algorithm may log none
        if x is not None and record["policy_accuracy"] is not None:
            places.setdefault((record["recipe"], record["arm"]), []).append((x, record["policy_accuracy"]))
    named = set()
    for (recipe, arm), points in places.items():
        of_recipe = [record for record in records if record["recipe"] == recipe]
        algorithm, tokens = of_recipe[0]["algorithm"], fmean(record["answer_tokens"] for record in of_recipe)
        what = f"{algorithm}, {tokens:.0f} tokens"
        colour, mark = ALGORITHMS[algorithm], MARKS[recipe]
        if not any(x for x, _ in points):  # no mismatch has no place on a logarithmic axis
            style = "--" if of_recipe[0]["world"] == "toy" else ":"
            axes.axhline(fmean(y for _, y in points), color=colour, ls=style, lw=1.2, label=f"{what}, no mismatch")
            continue
        fill = colour if "verl" in where else "none"
        label = None if recipe in named else f"{what}, {where}"
        named.add(recipe)
        axes.plot(*zip(*points, strict=True), mark, color=colour, mfc=fill, ms=7, label=label)
        x, y = (fmean(values) for values in zip(*points, strict=True))
        axes.annotate(arm.removeprefix("bits-"), (x, y), xytext=(7, 5), textcoords="offset points", fontsize=8)
        if recipe == "dose-response" and arm in TOY:
            axes.axvline(x, color=TOY[arm], ls=":", lw=1.2, label=f"toy, {arm.upper()}")
