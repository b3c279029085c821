# SPDX-License-Identifier: Apache-2.0
"""One way of smoothing for all curves of a comparison: a centred mean over a window of training steps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

_SHORTEST, _WINDOWS_A_RUN = 5, 40


def window_for(longest: int) -> int:
    """The default window: a fortieth of the steps of the ``longest`` run, but at least 5; odd, to have a centre."""
    return max(_SHORTEST, longest // _WINDOWS_A_RUN) | 1


def smoothed(steps: Sequence[int], values: Sequence[float], window: int) -> list[float]:
    """At each of the ascending ``steps``, the mean of the values less than half a ``window`` of steps away.

    Near the ends of a run it is the mean of those that are there. Steps need not be logged without gaps.
    """
    half = window // 2
    return [fmean(values[bisect_left(steps, step - half) : bisect_right(steps, step + half)]) for step in steps]


def noise(values: Sequence[float]) -> float:
    """The standard deviation of ``values`` around a curve that changes slowly.

    From the mean step-to-step change, which is 2/sqrt(pi) standard deviations for independent normal noise; so one
    jump in a long curve counts for little.
    """
    changes = [abs(after - before) for before, after in pairwise(values)]
    return fmean(changes) * 0.8862269254527579 if changes else 0.0  # sqrt(pi) / 2
