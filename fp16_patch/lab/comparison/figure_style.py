# SPDX-License-Identifier: Apache-2.0
"""What the plots of a comparison share: an arm has one colour everywhere, a run one line style.

BF16 is red to yellow, FP16 blue to green, whatever the arms' order. Colours are from the sets of Okabe and Ito and Tol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fp16_patch.lab.analysis.run_diff import Run
from fp16_patch.lab.analysis.smoothing import smoothed
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import Points
from fp16_patch.lab.recipes.schema import Recipe

COLOURS = {
    "bf16": ("#D55E00", "#E69F00", "#CC79A7", "#882255", "#B8860B"),
    "fp16": ("#0072B2", "#009E73", "#56B4E9", "#332288", "#44AA99"),
    "fp32": ("#555555", "#999999"),
}
LINES = ("-", "--", ":", "-.")
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 2.5,
    "legend.frameon": False,
}
GREY = "#666666"
_DPI, _MOST_DOTS = 130, 60


@dataclass(frozen=True)
class Curve:
    """An arm as it is drawn. Arms of several runs that stand in the same place share a colour."""

    run: str
    recipe: Recipe
    arm: ArmRun
    colour: str
    line: str

    @property
    def label(self) -> str:
        return f"{self.run} {self.arm.name}".strip()


Curves = Sequence[Curve]


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    curves = []
    for run, line in zip(runs, LINES * len(runs), strict=False):
        before: Counter[str] = Counter()
        for arm in run.arms:
            shades = COLOURS[arm.precision]
            curves.append(Curve(run.label, run.recipe, arm, shades[before[arm.precision] % len(shades)], line))
            before[arm.precision] += 1
    return curves


def plot(axes: Axes, curve: Curve, points: Points) -> None:
    """One line, with dots where there are few: a run of one step is a point."""
    if points[0]:
        dots = "o" if len(points[0]) <= _MOST_DOTS else ""
        axes.plot(*points, curve.line, color=curve.colour, label=curve.label, marker=dots)


def plot_smoothed(axes: Axes, curve: Curve, name: str, window: int) -> None:
    """One smoothed line, what was logged faint behind it."""
    steps, values = curve.arm.series.points(name)
    if steps:
        axes.plot(steps, values, color=curve.colour, alpha=0.25, linewidth=0.9, zorder=1)
        plot(axes, curve, (steps, smoothed(steps, values, window)))


def finish(axes: Axes, title: str, y_label: str, x_label: str = "training step") -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if not axes.get_legend_handles_labels()[0]:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=GREY)


def legend(figure: Figure, axes: Axes) -> None:
    """Above the axes at the right, where it covers no data; below them where that is too long for the title."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 3:
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    elif handles:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=4, borderaxespad=0.1)


def remark(axes: Axes, words: str) -> None:
    text = axes.text(0.012, 0.05, words, transform=axes.transAxes, fontsize=9.5, color=GREY, zorder=1)
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})


def new_figure(inches: tuple[float, float]) -> Figure:
    figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, file: Path) -> None:
    # The Agg canvas draws without a display; no pyplot, so no global state is left behind.
    figure.savefig(file, metadata={"Software": None})
