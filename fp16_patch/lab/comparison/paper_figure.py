# SPDX-License-Identifier: Apache-2.0
"""Draw the paper's figure: reward, evaluation and mismatch, where a run collapses, and the published numbers.

A published number is drawn only if it is comparable with the arm's own, so never for a run at toy scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fp16_patch.lab.analysis.published import PaperComparison, evaluation_points, series_name
from fp16_patch.lab.analysis.smoothing import smooth
from fp16_patch.lab.comparison.figure_style import (
    GREY,
    Curve,
    Curves,
    finish,
    mark_non_finite,
    new_figure,
    plot,
    plot_smoothed,
)

_PANELS = {
    "reward": ("Training reward", "mean of the batch, over {window} steps"),
    "evaluation": ("Evaluation", "score"),
    "prob_diff_mean": ("Mean |π - μ|", "probability (log scale), over {window} steps"),
}
_PANEL_INCHES, _HEIGHT = 5.0, 4.2
_COLLAPSE: dict[str, Any] = {
    "marker": "X",
    "markersize": 10,
    "markeredgecolor": "white",
    "linestyle": "none",
    "zorder": 5,
}
_PUBLISHED: dict[str, Any] = {
    "marker": "D",
    "markersize": 5,
    "markerfacecolor": "white",
    "linestyle": "none",
    "zorder": 4,
}


def draw_paper_figure(curves: Curves, window: int) -> Figure:
    """Draw the reward panel, and the other panels for which something was logged."""
    names = [name for name in _PANELS if name == "reward" or any(_logged(curve, name) for curve in curves)]
    figure = new_figure((_PANEL_INCHES * max(2, len(names)) - 1, _HEIGHT))
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        for curve in curves:
            _draw_curve(axes, curve, name, window)
            _draw_published(axes, curve, [row for row in curve.published if series_name(row.what) == name])
        scores = {key for curve in curves for key in curve.report.evaluation}
        not_finite = mark_non_finite(axes, curves, *(scores if name == "evaluation" else [name]))
        title, y_label = _PANELS[name]
        finish(axes, title, y_label.format(window=window), not_finite=not_finite)
    handles = [Line2D([], [], color=c.colour, linestyle=c.line, label=c.label) for c in curves if c.arm.series.steps]
    handles += _mark_handles(curves)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _draw_curve(axes: Axes, curve: Curve, name: str, window: int) -> None:
    if name == "evaluation":
        plot(axes, curve, evaluation_points(curve.arm.series))
        return
    if name == "prob_diff_mean":
        axes.set_yscale("log", nonpositive="mask")
    plot_smoothed(axes, curve, name, window)
    if name == "reward":
        _mark_collapse(axes, curve, window)


def _mark_collapse(axes: Axes, curve: Curve, window: int) -> None:
    """Draw a cross where the collapse begins."""
    begin = curve.report.collapse.step
    steps, rewards = curve.arm.series.points("reward")
    if begin is not None and steps:
        at = max((i for i, step in enumerate(steps) if step <= begin), default=0)
        axes.plot([steps[at]], [smooth(steps, rewards, window)[at]], color=curve.colour, **_COLLAPSE)


def _draw_published(axes: Axes, curve: Curve, rows: Sequence[PaperComparison]) -> None:
    """Draw a diamond with its tolerance at its step, or a band over all steps if none is given."""
    for row in rows:
        if row.published_step is not None:
            axes.errorbar(row.published_step, row.published, row.tolerance, color=curve.colour, capsize=3, **_PUBLISHED)
        else:
            low, high = row.published - row.tolerance, row.published + row.tolerance
            axes.axhspan(low, high, color=curve.colour, alpha=0.15, linewidth=0)


def _logged(curve: Curve, name: str) -> bool:
    return len(curve.arm.series.evaluation) == 1 if name == "evaluation" else curve.arm.series.is_logged(name)


def _mark_handles(curves: Curves) -> list[Line2D]:
    """Return the legend entries of the marks that the figure has."""
    marks = []
    drawn = [row for curve in curves for row in curve.published if series_name(row.what) in _PANELS]
    if any(curve.report.collapse.found for curve in curves):
        marks.append(Line2D([], [], color=GREY, label="collapse begins", **_COLLAPSE))
    if any(row.published_step is not None for row in drawn):
        marks.append(Line2D([], [], color=GREY, label="published", **_PUBLISHED))
    if any(row.published_step is None for row in drawn):
        marks.append(Line2D([], [], color=GREY, alpha=0.3, linewidth=7, label="published, step not given"))
    return marks
