# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison as PNG files. An arm has one colour everywhere, a run one line style.

Colours are from Okabe and Ito's set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fp16_patch.recipes.headline import headline
from fp16_patch.recipes.runs import ArmRun

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLE: dict[str, Any] = {
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
    "lines.marker": "o",  # a run of one step is a point
    "lines.markersize": 2.5,
    "legend.frameon": False,
}
_GREY = "#666666"
_INCHES, _DPI = (7.0, 3.8), 130

LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Curve:
    """An arm as it is drawn. Arms of several runs that stand in the same place share a colour."""

    run: str
    arm: ArmRun
    colour: str
    line: str

    @property
    def label(self) -> str:
        return f"{self.run} {self.arm.name}".strip()


Curves = Sequence[Curve]
Points = tuple[list[int], list[float]]


def draw(runs: Mapping[str, Sequence[ArmRun]], folder: Path) -> dict[str, Path]:
    """Write every plot into ``folder``; returns name -> file, in reading order. ``runs`` maps labels to arms."""
    curves = curves_of(runs)
    panels: dict[str, Callable[[Axes, Curves], None]] = {
        "reward": _reward,
        "prob_diff": _prob_diff,
        "kl": _kl,
        "pi_minus_mu": _extremes,
    }
    files = {name: folder / f"{name}.png" for name in ("overview", *panels, "loss_scale")}
    with mpl.rc_context(_STYLE):
        for name, panel in panels.items():
            figure = _figure(_INCHES)
            axes = figure.add_subplot()
            panel(axes, curves)
            _legend(figure, axes)
            _save(figure, files[name])
        _loss_scale(curves, files["loss_scale"])
        _overview(runs, curves, files["overview"])
    return files


def curves_of(runs: Mapping[str, Sequence[ArmRun]]) -> list[Curve]:
    return [
        Curve(label, arm, COLOURS[j % len(COLOURS)], LINES[i % len(LINES)])
        for i, (label, arms) in enumerate(runs.items())
        for j, arm in enumerate(arms)
    ]


def _overview(runs: Mapping[str, Sequence[ArmRun]], curves: Curves, file: Path) -> None:
    """The comparison in one picture: both distances with their ratio, and the reward."""
    figure = _figure((13.5, 3.8))
    heads = {label: headline(arms) for label, arms in runs.items()}
    for i, (panel, ratio) in enumerate(((_prob_diff, "prob_diff_ratio"), (_kl, "k3_kl_ratio"), (_reward, None))):
        axes = figure.add_subplot(1, 3, i + 1)
        panel(axes, curves)
        ratios = [f"{label} {head[ratio]:.1f}".strip() for label, head in heads.items() if ratio and head[ratio]]
        if ratios:
            gap = ": " if len(runs) == 1 else "\n"
            axes.set_title(f"{axes.get_title('left')}{gap}BF16 / FP16 = {', '.join(ratios)}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    _save(figure, file)


def _reward(axes: Axes, curves: Curves) -> None:
    _lines(axes, curves, "reward", "Reward", "mean of the batch")


def _prob_diff(axes: Axes, curves: Curves) -> None:
    _lines(axes, curves, "prob_diff_mean", "Mean |π - μ|", "probability (log scale)", log=True)


def _kl(axes: Axes, curves: Curves) -> None:
    _lines(axes, curves, "k3_kl", "KL[μ|π]", "nats per token, k3 (log scale)", log=True)


def _extremes(axes: Axes, curves: Curves) -> None:
    """The largest and smallest pi - mu of each step, the band between them filled."""
    for curve in curves:
        (steps, high), (low_steps, low) = _points(curve.arm, "pi_minus_mu_max"), _points(curve.arm, "pi_minus_mu_min")
        if not steps:
            continue
        axes.plot(steps, high, curve.line, color=curve.colour, label=curve.label)
        axes.plot(low_steps, low, curve.line, color=curve.colour)
        if steps == low_steps:
            axes.fill_between(steps, low, high, color=curve.colour, alpha=0.18, linewidth=0)
    axes.axhline(0, color="#888888", linewidth=0.8, marker="")
    _finish(axes, "Largest and smallest π - μ of a step", "probability")


def _loss_scale(curves: Curves, file: Path) -> None:
    figure = _figure(_INCHES)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.set_yscale("log", base=2)
    unscaled, most = [], 1.0
    for curve in curves:
        steps, scale = _points(curve.arm, "loss_scale")
        if steps:
            above.step(steps, scale, curve.line, where="post", color=curve.colour, label=curve.label)
        elif curve.arm.series.steps:
            unscaled.append(curve.label)
        skips = dict(zip(*_points(curve.arm, "update_skipped"), strict=True))
        skipped = {step: count for step, count in skips.items() if count}
        filled = curve.line == LINES[0]  # a run drawn later must not hide this one
        below.bar(
            list(skipped),
            list(skipped.values()),
            width=0.8,
            facecolor=curve.colour if filled else "none",
            edgecolor=curve.colour,
            linewidth=0 if filled else 1.2,
        )
        most = max([most, *skipped.values()])
    below.set_ylim(0, most)
    _finish(above, "Loss scale", "factor (log₂ scale)", x_label="")
    _legend(figure, above)
    if unscaled:
        _remark(above, f"{', '.join(unscaled)}: no loss scaling")
    below.set_ylabel("skipped\nupdates")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
    below.set_xlabel("training step")
    _save(figure, file)


def _lines(axes: Axes, curves: Curves, name: str, title: str, y_label: str, *, log: bool = False) -> None:
    """One line an arm. On a log axis points that are not positive have no place and are left out, with a note."""
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _scientific(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    left_out = 0
    for curve in curves:
        steps, values = _points(curve.arm, name)
        drawn = [(s, v) for s, v in zip(steps, values, strict=True) if v > 0 or not log]
        left_out += len(steps) - len(drawn)
        if drawn:
            axes.plot(*zip(*drawn, strict=True), curve.line, color=curve.colour, label=curve.label)
    if left_out:
        _remark(axes, f"{left_out} point{'s' * (left_out > 1)} ≤ 0 not drawn")
    _finish(axes, title, y_label)


def _scientific(value: float) -> str:
    """As few digits as tell ticks within one decade apart."""
    return str(np.format_float_scientific(value, precision=2, trim="-", exp_digits=2))


def _points(arm: ArmRun, name: str) -> Points:
    pairs = [(s, v) for s, v in zip(arm.series.steps, arm.series.values[name], strict=True) if v is not None]
    return [s for s, _ in pairs], [v for _, v in pairs]


def _finish(axes: Axes, title: str, y_label: str, x_label: str = "training step") -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axes.get_legend_handles_labels()[0]:
        axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", color=_GREY)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the axes at the right, where it covers no data; below them where that is too long for the title."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 3:
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    elif handles:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=4, borderaxespad=0.1)


def _remark(axes: Axes, words: str) -> None:
    text = axes.text(0.012, 0.05, words, transform=axes.transAxes, fontsize=9.5, color=_GREY, zorder=1)
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})


def _figure(inches: tuple[float, float]) -> Figure:
    figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, file: Path) -> None:
    # The Agg canvas draws without a display; no pyplot, so no global state is left behind.
    figure.savefig(file, metadata={"Software": None})
