# SPDX-License-Identifier: Apache-2.0
"""Draw the figure of docs/results-toy.md: accuracy of the trained weights against the mismatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from toy_experiment_records import Record, answer_kl, mean, read_plain, read_records, token_mismatch

from fp16_patch.lab.comparison.figure_style import COLOURS

TOY = {"bf16": COLOURS["bf16"][0], "fp16": COLOURS["fp16"][0]}
ALGORITHMS = {"GRPO": COLOURS["fp16"][1], "PG-Seq-IS": COLOURS["bf16"][2]}
MARKS = {
    "dose-response": "o",
    "dose-response-pg-seq-is": "s",
    "dose-response-long": "^",
    "dose-response-long-pg-seq-is": "D",
}
PAPER_TOKEN = {"BF16": (0.004, 0.0155), "FP16": (0.0006, 0.0008)}
"""Mean |pi - mu| of a 1.5B model in verl, by eye from Figure 3 of arXiv 2510.26788; BF16: from start to collapse."""
PAPER_ANSWER = {"BF16": (7.2, 8.1), "FP16": (0.3, 0.34)}
"""KL[mu|pi] of its answers of up to 32,000 tokens, as Figure 5 states it: 7.64 and 0.32; drawn as bands to be seen."""
Y_TICKS = (0.05, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97)

Measure = Callable[[Record], float | None]


def draw(file: Path) -> None:
    """Draw accuracy against the measured mismatch, per token and per answer."""
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
    """Draw a point per run, filled for runs of the frameworks, with its arm, and a line at BF16 and FP16."""
    places: dict[tuple[str, str], list[tuple[float, float]]] = {}
    spoilt: set[tuple[str, str]] = set()
    for record in records:
        key, x = (record["recipe"], record["arm"]), measure(record)
        if record.get("non_finite"):
            spoilt.add(key)
        elif not x:  # the first runs of PG-Seq-IS logged none
            x = mean([measure(other) for other in everything if (other["recipe"], other["arm"]) == key])
        if x is not None and record["policy_accuracy"] is not None:
            places.setdefault(key, []).append((x, record["policy_accuracy"]))
    for recipe, arm in sorted(spoilt - places.keys()):
        axes.plot([], [], "x", color="black", label=f"{recipe} {arm}: no finite mismatch")
    named = set()
    for (recipe, arm), points in places.items():
        of_recipe = [record for record in records if record["recipe"] == recipe]
        algorithm, tokens = of_recipe[0]["algorithm"], mean([record["answer_tokens"] for record in of_recipe])
        what = f"{algorithm}, {tokens or math.nan:.0f} tokens"
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
        text = arm.removeprefix("bits-") + " (NaN in some steps)" * ((recipe, arm) in spoilt)
        axes.annotate(text, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=8)
        if recipe == "dose-response" and arm in TOY:
            axes.axvline(x, color=TOY[arm], ls=":", lw=1.2, label=f"toy, {arm.upper()}")
