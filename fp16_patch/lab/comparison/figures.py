# SPDX-License-Identifier: Apache-2.0
"""Draw the figures of a comparison as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fp16_patch.lab.comparison.figure_style import (
    LINES,
    STYLE,
    Curves,
    add_note,
    build_curves,
    finish,
    legend,
    mark_non_finite,
    new_figure,
    plot,
    plot_smoothed,
)
from fp16_patch.lab.comparison.model import Comparison
from fp16_patch.lab.comparison.offline_figure import draw_offline
from fp16_patch.lab.comparison.paper_figure import draw_paper_figure

_INCHES = (7.0, 3.8)

Panel = Callable[[Axes, Curves], None]


def draw(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Write every figure into ``folder`` and return {name: file} in reading order."""
    curves, window = build_curves(comparison), comparison.window
    with style.context(STYLE):
        figures = {
            "figure": draw_paper_figure(curves, window),
            "overview": _overview(comparison, curves, partial(_reward, window=window)),
            "prob_diff": _single(_prob_diff, curves),
            "kl": _single(_kl, curves),
            "pi_minus_mu": _single(_extremes, curves),
            "loss_scale": _loss_scale(curves),
        }
        if any(curve.arm.log_probs for curve in curves):
            figures["offline"] = draw_offline(curves)
        files = {name: folder / f"{name}.png" for name in figures}
        for name, figure in figures.items():
            figure.savefig(files[name], metadata={"Software": None})
    return files


def _single(panel: Panel, curves: Curves) -> Figure:
    """Draw a figure of one panel."""
    figure = new_figure(_INCHES)
    axes = figure.add_subplot()
    panel(axes, curves)
    legend(figure, axes)
    return figure


def _overview(comparison: Comparison, curves: Curves, reward: Panel) -> Figure:
    """Draw both mismatch metrics with their ratio, and the reward, in one picture."""
    figure = new_figure((13.5, 3.8))
    heads = {label: report.headline for label, report in comparison.reports.items()}
    panels: list[tuple[Panel, str | None]] = [(_prob_diff, "prob_diff_ratio"), (_kl, "k3_kl_ratio"), (reward, None)]
    for i, (panel, ratio) in enumerate(panels):
        axes = figure.add_subplot(1, 3, i + 1)
        panel(axes, curves)
        found = {label: getattr(head, ratio) for label, head in heads.items()} if ratio else {}
        ratios = [f"{label} {value:.1f}".strip() for label, value in found.items() if value]
        if ratios:
            gap = ": " if len(heads) == 1 else "\n"
            axes.set_title(f"{axes.get_title('left')}{gap}BF16 / FP16 = {', '.join(ratios)}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    return figure


def _reward(axes: Axes, curves: Curves, *, window: int) -> None:
    for curve in curves:
        plot_smoothed(axes, curve, "reward", window)
    not_finite = mark_non_finite(axes, curves, "reward")
    finish(axes, "Reward", f"mean of the batch, over {window} steps", not_finite=not_finite)


def _prob_diff(axes: Axes, curves: Curves) -> None:
    _log_lines(axes, curves, "prob_diff_mean", "Mean |π - μ|", "probability (log scale)")


def _kl(axes: Axes, curves: Curves) -> None:
    _log_lines(axes, curves, "k3_kl", "KL[μ|π]", "nats per token, k3 (log scale)")


def _extremes(axes: Axes, curves: Curves) -> None:
    """Draw the largest and smallest pi - mu of each step, and fill the band between them."""
    for curve in curves:
        steps, high = curve.arm.series.points("pi_minus_mu_max")
        low_steps, low = curve.arm.series.points("pi_minus_mu_min")
        if not steps:
            continue
        plot(axes, curve, (steps, high))
        axes.plot(low_steps, low, curve.line, color=curve.colour)
        if steps == low_steps:
            axes.fill_between(steps, low, high, color=curve.colour, alpha=0.18, linewidth=0)
    axes.axhline(0, color="#888888", linewidth=0.8)
    not_finite = mark_non_finite(axes, curves, "pi_minus_mu_max", "pi_minus_mu_min")
    finish(axes, "Largest and smallest π - μ of a step", "probability", not_finite=not_finite)


def _loss_scale(curves: Curves) -> Figure:
    figure = new_figure(_INCHES)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.set_yscale("log", base=2)
    unscaled, highest = [], 1.0
    for curve in curves:
        steps, scale = curve.arm.series.points("loss_scale")
        if steps:
            above.step(steps, scale, curve.line, where="post", color=curve.colour, label=curve.label)
        elif curve.arm.series.steps and not curve.arm.series.is_logged("loss_scale"):
            unscaled.append(curve.label)
        skips = dict(zip(*curve.arm.series.points("update_skipped"), strict=True))
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
        highest = max([highest, *skipped.values()])
    below.set_ylim(0, highest)
    not_finite = mark_non_finite(above, curves, "loss_scale")
    finish(above, "Loss scale", "factor (log₂ scale)", x_label="", not_finite=not_finite)
    legend(figure, above)
    if unscaled:
        add_note(above, f"{', '.join(unscaled)}: no loss scaling")
    below.set_ylabel("skipped\nupdates")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
    below.set_xlabel("training step")
    return figure


def _log_lines(axes: Axes, curves: Curves, name: str, title: str, y_label: str) -> None:
    """Draw one line per arm on a log axis. Points that are not positive or not finite are noted."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _scientific(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    omitted = 0
    for curve in curves:
        steps, values = curve.arm.series.points(name)
        drawn = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]
        omitted += len(steps) - len(drawn)
        plot(axes, curve, ([step for step, _ in drawn], [value for _, value in drawn]))
    if omitted:
        add_note(axes, f"{omitted} point{'s' * (omitted > 1)} ≤ 0 not drawn")
    finish(axes, title, y_label, not_finite=mark_non_finite(axes, curves, name))


def _scientific(value: float) -> str:
    """Format with the fewest digits that tell ticks within one decade apart."""
    return str(np.format_float_scientific(value, precision=2, trim="-", exp_digits=2))
