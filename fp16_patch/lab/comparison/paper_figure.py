# SPDX-License-Identifier: Apache-2.0
"""The paper's figure over again: reward, evaluation and mismatch side by side, where a run collapses, and the published
numbers beside the curves they are of.

A published number is drawn where the arm's own can be compared with it, so never beside a run at toy scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fp16_patch.lab.analysis import collapse
from fp16_patch.lab.analysis.published import evaluation, incomparable, published, series_of
from fp16_patch.lab.analysis.smoothing import smoothed
from fp16_patch.lab.comparison.figure_style import GREY, Curve, Curves, finish, new_figure, plot, plot_smoothed, save
from fp16_patch.lab.recipes.schema import Published

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


def draw_figure(curves: Curves, window: int, file: Path) -> None:
    """Panels for which nothing was logged are left out, but for the reward."""
    shown = {name: {curve.label: _shown(curve, name) for curve in curves} for name in _PANELS}
    names = [name for name in _PANELS if name == "reward" or any(_logged(curve, name) for curve in curves)]
    figure = new_figure((_PANEL_INCHES * max(2, len(names)) - 1, _HEIGHT))
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        for curve in curves:
            _curve(axes, curve, name, window)
            _published(axes, curve, shown[name][curve.label])
        title, y_label = _PANELS[name]
        finish(axes, title, y_label.format(window=window))
    handles = [Line2D([], [], color=c.colour, linestyle=c.line, label=c.label) for c in curves if c.arm.series.steps]
    drawn = [number for panel in shown.values() for numbers in panel.values() for number in numbers]
    handles += _explained(curves, window, drawn)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    save(figure, file)


def _curve(axes: Axes, curve: Curve, name: str, window: int) -> None:
    if name == "evaluation":
        plot(axes, curve, evaluation(curve.arm.series))
        return
    if name == "prob_diff_mean":
        axes.set_yscale("log", nonpositive="mask")
    plot_smoothed(axes, curve, name, window)
    if name == "reward":
        _collapse(axes, curve, window)


def _collapse(axes: Axes, curve: Curve, window: int) -> None:
    """A cross on the curve where the collapse begins."""
    begin = collapse.describe(curve.arm.series, window)["step"]
    steps, rewards = curve.arm.series.points("reward")
    if begin is not None and steps:
        at = max((i for i, step in enumerate(steps) if step <= begin), default=0)
        axes.plot([steps[at]], [smoothed(steps, rewards, window)[at]], color=curve.colour, **_COLLAPSE)


def _published(axes: Axes, curve: Curve, numbers: Sequence[Published]) -> None:
    """A diamond with its tolerance at its step, or a band over all steps where none is given."""
    for number in numbers:
        if number.step is not None:
            axes.errorbar(number.step, number.value, number.tolerance, color=curve.colour, capsize=3, **_PUBLISHED)
        else:
            low, high = number.value - number.tolerance, number.value + number.tolerance
            axes.axhspan(low, high, color=curve.colour, alpha=0.15, linewidth=0)


def _shown(curve: Curve, name: str) -> list[Published]:
    if incomparable(curve.recipe, curve.arm) or not _logged(curve, name):
        return []
    return [number for number in published(curve.recipe).get(curve.arm.name, ()) if series_of(number) == name]


def _logged(curve: Curve, name: str) -> bool:
    return bool(evaluation(curve.arm.series)[0] if name == "evaluation" else curve.arm.series.known(name))


def _explained(curves: Curves, window: int, numbers: Sequence[Published]) -> list[Line2D]:
    """Entries of the legend for the marks that the figure has."""
    marks = []
    if any(collapse.describe(curve.arm.series, window)["found"] for curve in curves):
        marks.append(Line2D([], [], color=GREY, label="collapse begins", **_COLLAPSE))
    if any(number.step is not None for number in numbers):
        marks.append(Line2D([], [], color=GREY, label="published", **_PUBLISHED))
    if any(number.step is None for number in numbers):
        marks.append(Line2D([], [], color=GREY, alpha=0.3, linewidth=7, label="published, step not given"))
    return marks
