# SPDX-License-Identifier: Apache-2.0
"""Style the figures of a comparison: an arm has the same colour in all of them, a run the same line style.

BF16 is red to yellow, FP16 blue to green, in any order of the arms. Colours are from the sets of Okabe and Ito and Tol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fp16_patch.lab.analysis.published import PaperComparison
from fp16_patch.lab.analysis.smoothing import smooth
from fp16_patch.lab.comparison.model import ArmReport, Comparison
from fp16_patch.lab.logs.runs import ArmRun
from fp16_patch.lab.logs.series import Points

COLOURS = {
    "bf16": ("#D55E00", "#E69F00", "#CC79A7", "#882255", "#B8860B"),
    "fp16": ("#0072B2", "#009E73", "#56B4E9", "#332288", "#44AA99"),
    "fp32": ("#555555", "#999999"),
}
LINES = ("-", "--", ":", "-.")
STYLE = Path(__file__).with_name("figure.mplstyle")
GREY = "#666666"
_DPI, _MAX_MARKERS = 130, 60
_NOT_FINITE: dict[str, Any] = {"marker": "x", "markersize": 7, "linestyle": "none", "zorder": 5}


@dataclass(frozen=True)
class Curve:
    """An arm as drawn. Arms at the same position in several runs share a colour."""

    label: str
    arm: ArmRun
    report: ArmReport
    published: list[PaperComparison]
    colour: str
    line: str


Curves = Sequence[Curve]


def build_curves(comparison: Comparison) -> list[Curve]:
    """Assign a colour and a line style to every arm."""
    curves = []
    for i, run in enumerate(comparison.runs):
        report, used = comparison.reports[run.label], Counter[str]()
        for arm in run.arms:
            published = [row for row in report.published if row.arm == arm.name and row.drawable]
            shades = COLOURS[arm.precision]
            colour = shades[used[arm.precision] % len(shades)]
            label = f"{run.label} {arm.name}".strip()
            curves.append(Curve(label, arm, report.arms[arm.name], published, colour, LINES[i % len(LINES)]))
            used[arm.precision] += 1
    return curves


def plot(axes: Axes, curve: Curve, points: Points) -> None:
    """Draw one line, with markers if there are few points: a run of one step is a point."""
    if points[0]:
        marker = "o" if len(points[0]) <= _MAX_MARKERS else ""
        axes.plot(*points, curve.line, color=curve.colour, label=curve.label, marker=marker)


def plot_smoothed(axes: Axes, curve: Curve, name: str, window: int) -> None:
    """Draw one smoothed line, with the logged values faint behind it."""
    steps, values = curve.arm.series.points(name)
    if steps:
        axes.plot(steps, values, color=curve.colour, alpha=0.25, linewidth=0.9, zorder=1)
        plot(axes, curve, (steps, smooth(steps, values, window)))


def finish(
    axes: Axes, title: str, y_label: str, x_label: str = "training step", not_finite: Sequence[str] = ()
) -> None:
    """Set title and labels, add the lines of :func:`mark_non_finite`, and say so if nothing was logged."""
    axes.set_title(title)
    axes.set_xlabel("\n".join([x_label, *not_finite]))
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if not axes.get_legend_handles_labels()[0] and not not_finite:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=GREY)


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend above the axes at the right, where it covers no data; a long one below them."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 3:
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    elif handles:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=4, borderaxespad=0.1)


def add_note(axes: Axes, words: str) -> None:
    """Write a small note at the bottom left."""
    text = axes.text(0.012, 0.05, words, transform=axes.transAxes, fontsize=9.5, color=GREY, zorder=1)
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})


def mark_non_finite(axes: Axes, curves: Curves, *names: str) -> list[str]:
    """Draw a cross near the upper edge at each step at which a series is NaN or infinite; return a line per arm."""
    lines = []
    for curve in curves:
        for name in (name for name in names if name in curve.report.non_finite):
            found = curve.report.non_finite[name]
            at_the_edge = axes.get_xaxis_transform()
            axes.plot(found.steps, [0.97] * len(found.steps), color=curve.colour, transform=at_the_edge, **_NOT_FINITE)
            lines.append(f"{curve.label}: {found} (x)")
    return list(dict.fromkeys(lines))


def new_figure(inches: tuple[float, float]) -> Figure:
    """Return a figure that draws without a display. Without pyplot there is no global state."""
    return Figure(figsize=inches, dpi=_DPI, layout="constrained")
