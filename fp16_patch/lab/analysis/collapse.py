# SPDX-License-Identifier: Apache-2.0
"""Detect whether and where a run collapsed, from signs in its curves. Each sign has a fixed threshold.

- **reward**: the smoothed reward is below its running peak by at least ``FALL`` of the peak's height and at least
  ``NOISE_STDS`` standard deviations of the smoothed curve, for at least one window and until the end of the run. Height
  is measured from zero, or from the lowest reward if that is negative. The collapse begins at the last step whose
  smoothed reward was within a third of that fall, or six standard deviations, of the peak. A fall that recovers is a
  warning.
- **gradient norm**, **reward**: logged as NaN or infinity at ``NOT_FINITE_STEPS`` logged steps in a row. An update that
  the loss scaler skips logs no norm and does not count.
- **mismatch**: the smoothed mean abs(pi - mu), or KL[mu|pi] if that is not logged, is at least ``GROWTH`` times its
  early level for one window. The early level is the median of the first tenth of the run. On a log scale the growth
  must also exceed ``NOISE_STDS``. This is a warning only: runs with a correction tolerate it.
- **not finite**: a reward or a mismatch that is NaN or infinite in any step is a warning. The curves above leave these
  steps out.

Independent noise on a level or rising curve is never a collapse: its smoothed curve would have to stay eight standard
deviations below its own peak. With this ``FALL`` the paper's BF16 run of GRPO (0.73 at step 370, 0.60 at its last step
610) has collapsed; a lasting fall to 0.67 would not be detected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from fp16_patch.lab.analysis.smoothing import noise_std, smooth
from fp16_patch.lab.logs.series import Series

FALL = 0.10
NOISE_STDS = 8.0
_BEGIN_STDS = 6.0
NOT_FINITE_STEPS = 3
GROWTH = 2.0
_MIN_WINDOWS, _ROUNDING = 4, 1e-9
_KINDS = {"grad_norm": "gradient norm", "reward": "reward", "prob_diff_mean": "mean abs(pi - mu)", "k3_kl": "KL"}
"""Series -> ``Sign.kind``."""


@dataclass(frozen=True)
class Sign:
    """One sign of trouble, which begins at ``step``.

    ``before`` and ``after`` are the values of the curve, if any. ``recovered`` is the step at which the smoothed curve
    crossed the threshold back. ``not_finite`` says how often a curve is not finite, if that is the sign.
    """

    kind: str
    step: int
    before: float | None = None
    after: float | None = None
    recovered: int | None = None
    not_finite: str = ""

    def __str__(self) -> str:
        if self.not_finite:
            return f"the {self.kind} is {self.not_finite}"
        changed = f"{self.before:.3g} to {self.after:.3g}"
        back = "" if self.recovered is None else f"; recovered by step {self.recovered}"
        if self.kind == "reward":
            return f"the smoothed reward falls from {changed}, beginning at step {self.step}{back}"
        return f"{self.kind} grows from {changed}, past {GROWTH:g} times its early level at step {self.step}{back}"


@dataclass(frozen=True)
class Collapse:
    """Whether a run collapsed. ``found`` is None if the run is too short to tell; ``step`` is the earliest sign's.

    ``how`` and ``warnings`` describe ``signs``: first those of the collapse, then the warnings.
    """

    found: bool | None
    step: int | None
    how: list[str]
    warnings: list[str]
    signs: list[Sign]

    def __str__(self) -> str:
        if self.found is None:
            return "too short to tell"
        return f"begins at step {self.step}" if self.found else "none found"


def detect_collapse(series: Series, window: int) -> Collapse:
    """Check a run's curves, smoothed over ``window`` training steps, for the signs above."""
    steps, rewards = series.points("reward")
    falls, growth = find_reward_falls(steps, rewards, window), find_mismatch_growth(series, window)
    lasting = [find_lasting_non_finite(series, name) for name in ("grad_norm", "reward")]
    single = [find_non_finite_steps(series, name) for name in ("reward", "prob_diff_mean", "k3_kl")]
    signs = [sign for sign in (*falls, *lasting) if sign is not None and sign.recovered is None]
    warnings = [sign for sign in (*falls, growth, *single) if sign is not None and sign not in signs]
    return Collapse(
        found=bool(signs) if signs or _long_enough(steps, window) else None,
        step=min((sign.step for sign in signs), default=None),
        how=[str(sign) for sign in signs],
        warnings=[str(sign) for sign in warnings],
        signs=[*signs, *warnings],
    )


def find_reward_falls(steps: Sequence[int], rewards: Sequence[float], window: int) -> list[Sign]:
    """Return the falls of the reward that last for a window. One that lasts until the end has not ``recovered``."""
    if not _long_enough(steps, window):
        return []
    curve = smooth(steps, rewards, window)
    peaks, lowest, min_fall = list(accumulate(curve, max)), min(0.0, *curve), _min_change(steps, rewards, window)
    falls = [max(FALL * (peak - lowest), min_fall) for peak in peaks]
    below = [value < peak - fall for value, peak, fall in zip(curve, peaks, falls, strict=True)]
    found = []
    for start, end in _stretches(steps, below, window):
        near = peaks[start] - max(falls[start] / 3, _BEGIN_STDS * min_fall / NOISE_STDS)
        begin = max(i for i in range(start) if curve[i] >= near)
        recovered = steps[end] if end < len(steps) else None
        found.append(Sign("reward", steps[begin], peaks[start], min(curve[start:end]), recovered))
    return found


def find_lasting_non_finite(series: Series, name: str) -> Sign | None:
    """Return the first of ``NOT_FINITE_STEPS`` steps in a row at which a series is NaN or infinite."""
    not_finite = set(series.non_finite_steps(name))
    broken = [step in not_finite for step in series.steps]
    for i in range(len(broken) - NOT_FINITE_STEPS + 1):
        if all(broken[i : i + NOT_FINITE_STEPS]):
            step = series.steps[i]
            return Sign(_KINDS[name], step, not_finite=f"not finite from step {step} on")
    return None


def find_non_finite_steps(series: Series, name: str) -> Sign | None:
    """Return the first step at which a series is NaN or infinite, and their count."""
    if name not in series.non_finite:
        return None
    found = series.non_finite[name]
    return Sign(_KINDS[name], found.steps[0], not_finite=f"{found}, first at step {found.steps[0]}")


def find_mismatch_growth(series: Series, window: int) -> Sign | None:
    """Return the first growth of the mismatch that lasts. ``step`` is where it crosses the threshold."""
    name = "prob_diff_mean" if series.known("prob_diff_mean") else "k3_kl"
    pairs = [(step, math.log(value)) for step, value in zip(*series.points(name), strict=True) if value > 0]
    steps, logs = [step for step, _ in pairs], [value for _, value in pairs]
    if not _long_enough(steps, window):
        return None
    curve = smooth(steps, logs, window)
    early = median(logs[: max(window, len(logs) // 10)])
    threshold = early + max(math.log(GROWTH), _min_change(steps, logs, window))
    found = next(_stretches(steps, [value > threshold for value in curve], window), None)
    if found is None:
        return None
    start, end = found
    recovered = steps[end] if end < len(steps) else None
    return Sign(_KINDS[name], steps[start], math.exp(early), math.exp(max(curve[start:end])), recovered)


def _long_enough(steps: Sequence[int], window: int) -> bool:
    return len(steps) > 1 and steps[-1] - steps[0] + 1 >= _MIN_WINDOWS * window


def _min_change(steps: Sequence[int], values: Sequence[float], window: int) -> float:
    """Return ``NOISE_STDS`` standard deviations of a mean over one window. Steps may be missing; never zero."""
    in_window = max(1.0, window * len(steps) / (steps[-1] - steps[0] + 1))
    return max(NOISE_STDS * noise_std(values) / math.sqrt(in_window), _ROUNDING * max(map(abs, values)))


def _stretches(steps: Sequence[int], holds: Sequence[bool], window: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) indices of the stretches where ``holds`` is true for a whole window of steps."""
    start = 0
    for i in range(len(steps) + 1):
        if i < len(steps) and holds[i]:
            continue
        if i > start and steps[i - 1] - steps[start] + 1 >= window:
            yield start, i
        start = i + 1
