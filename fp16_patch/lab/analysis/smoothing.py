# SPDX-License-Identifier: Apache-2.0
"""Smooth the curves of a comparison, all in one way: a centred mean over a window of training steps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

_MIN_WINDOW, _WINDOWS_PER_RUN = 5, 40


def default_window(longest: int) -> int:
    """Return a fortieth of the steps of the ``longest`` run, at least 5, and odd so that it has a centre."""
    return max(_MIN_WINDOW, longest // _WINDOWS_PER_RUN) | 1


def smooth(steps: Sequence[int], values: Sequence[float], window: int) -> list[float]:
    """Return, at each of the ascending ``steps``, the mean of the values less than half a ``window`` of steps away.

    Near the ends of a run the window is shorter. Steps may be missing.
    """
    half = window // 2
    return [fmean(values[bisect_left(steps, step - half) : bisect_right(steps, step + half)]) for step in steps]


def noise_std(values: Sequence[float]) -> float:
    """Estimate the standard deviation of ``values`` around a curve that changes slowly.

    Uses the mean step-to-step change, which is 2/sqrt(pi) standard deviations for independent normal noise. One jump in
    a long curve therefore counts for little.
    """
    changes = [abs(after - before) for before, after in pairwise(values)]
    return fmean(changes) * 0.8862269254527579 if changes else 0.0  # sqrt(pi) / 2
