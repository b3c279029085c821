# SPDX-License-Identifier: Apache-2.0
"""Draw the paper's Figure 5 from stored log-probs: token probabilities, and log-ratios of answers by length."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fp16_patch.lab.comparison.figure_style import Curves, finish, new_figure
from fp16_patch.lab.comparison.terminal import show_measured

_MAX_TOKENS = 20_000
"""More tokens are thinned out evenly."""


def draw_offline(curves: Curves) -> Figure:
    """Draw both panels. Arms without stored log-probs are omitted."""
    figure = new_figure((11.0, 4.4))
    tokens, answers = figure.subplots(1, 2)
    _tokens(tokens, curves)
    _answers(answers, curves)
    return figure


def _tokens(axes: Axes, curves: Curves) -> None:
    for curve in curves:
        if (log_probs := curve.arm.log_probs) is not None:
            every = slice(None, None, max(1, len(log_probs.mu) // _MAX_TOKENS))
            mu, pi = np.exp(log_probs.mu[every]), np.exp(log_probs.pi[every])
            axes.scatter(mu, pi, s=3, color=curve.colour, alpha=0.35, linewidths=0, label=curve.label)
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
    finish(axes, "Probability of a sampled token", "π, trainer", "μ, rollout")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", markerscale=4)


def _answers(axes: Axes, curves: Curves) -> None:
    for curve in curves:
        log_probs, offline = curve.arm.log_probs, curve.report.offline
        if log_probs is None or offline is None:
            continue
        lengths, ratios = log_probs.lengths, log_probs.log_ratios()
        lengths, ratios = lengths[np.isfinite(ratios)], ratios[np.isfinite(ratios)]
        axes.scatter(lengths, ratios, s=10, color=curve.colour, alpha=0.5, linewidths=0)
        if (slope := offline.slope_per_1000_tokens) is not None:
            ends = np.array([lengths.min(), lengths.max()])
            line = ratios.mean() + slope / 1000 * (ends - lengths.mean())  # least squares: through the means
            words = f"{curve.label}: {show_measured(offline, 'slope_per_1000_tokens', '+.2g')} per 1,000 tokens"
            axes.plot(ends, line, curve.line, color=curve.colour, label=words)
    axes.axhline(0, color="#888888", linewidth=0.8)
    finish(axes, "Log-ratio of an answer", "log π - log μ, nats", "tokens of the answer")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
