# SPDX-License-Identifier: Apache-2.0
"""Whether a run collapsed, where that begins, and how: signs found in its curves, each by a stated threshold.

- **reward**: from some step to the end of the run, and for at least a whole window, the smoothed reward lies below its
  running peak by ``FALL`` of the peak's height or more, and by ``NOISES`` standard deviations of the smoothed curve or
  more. Height is from zero, or from the lowest reward where that is negative. It begins at the last step before that at
  which the curve was within a third of that fall, or six standard deviations, from its peak. A fall from which the
  reward came back is a warning.
- **gradient norm**: logged as NaN or infinity at ``NOT_FINITE`` logged steps in a row. An update that the loss scaler
  skips logs no norm and is not one of them.
- **mismatch**: the smoothed mean abs(pi - mu), or where that is not logged KL[mu|pi], is for a whole window ``GROWTH``
  times its early level or more, the median of the first tenth of the run; on a log scale by ``NOISES`` as above. It is
  a warning: corrected runs live with it.

Independent noise on a level or rising curve is not found to be a collapse, however large: its smoothed curve would have
to stay eight standard deviations below its own peak. With ``FALL`` as it is, the paper's BF16 run of GRPO (0.73 at step
370, 0.60 where it stops at 610) has collapsed, and a fall to 0.67 that lasts would not be found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from statistics import median
from typing import Any

from fp16_patch.lab.analysis.smoothing import noise, smoothed
from fp16_patch.lab.logs.series import Series

FALL = 0.10
NOISES = 8.0
_NEAR = 6.0
NOT_FINITE = 3
GROWTH = 2.0
_LEAST_WINDOWS, _ROUNDING = 4, 1e-9


@dataclass(frozen=True)
class Sign:
    """One thing that went wrong, from ``step`` on. ``before`` and ``after`` are its measure's values, if it has some.

    ``recovered`` is the step at which the smoothed curve was back on the right side of the threshold.
    """

    kind: str
    step: int
    before: float | None = None
    after: float | None = None
    recovered: int | None = None

    def __str__(self) -> str:
        if self.kind == "gradient norm":
            return f"the gradient norm is not finite from step {self.step} on"
        changed = f"{self.before:.3g} to {self.after:.3g}"
        back = "" if self.recovered is None else f"; recovered by step {self.recovered}"
        if self.kind == "reward":
            return f"the smoothed reward falls from {changed}, beginning at step {self.step}{back}"
        return f"{self.kind} grows from {changed}, past {GROWTH:g} times its early level at step {self.step}{back}"


def describe(series: Series, window: int) -> dict[str, Any]:
    """A JSON-able account: ``found`` is None where the run is too short to tell; ``step`` is the earliest sign's."""
    steps, rewards = series.points("reward")
    falls, broken, grown = reward_falls(steps, rewards, window), norm_breaks(series), mismatch_grows(series, window)
    signs = [sign for sign in (*falls, broken) if sign is not None and sign.recovered is None]
    warnings = [sign for sign in (*falls, grown) if sign is not None and sign not in signs]
    return {
        "found": bool(signs) if signs or _long_enough(steps, window) else None,
        "step": min((sign.step for sign in signs), default=None),
        "how": [str(sign) for sign in signs],
        "warnings": [str(sign) for sign in warnings],
        "signs": [asdict(sign) for sign in (*signs, *warnings)],
    }


def words(collapse: Mapping[str, Any]) -> str:
    """The account in a few words."""
    if collapse["found"] is None:
        return "too short to tell"
    return f"begins at step {collapse['step']}" if collapse["found"] else "none found"


def reward_falls(steps: Sequence[int], rewards: Sequence[float], window: int) -> list[Sign]:
    """The falls of the reward that last for a window; one that lasts to the end has not ``recovered``."""
    if not _long_enough(steps, window):
        return []
    curve = smoothed(steps, rewards, window)
    peaks, lowest, unsure = list(accumulate(curve, max)), min(0.0, *curve), _unsure(steps, rewards, window)
    falls = [max(FALL * (peak - lowest), unsure) for peak in peaks]
    below = [value < peak - fall for value, peak, fall in zip(curve, peaks, falls, strict=True)]
    found = []
    for start, end in _stretches(steps, below, window):
        near = peaks[start] - max(falls[start] / 3, _NEAR * unsure / NOISES)
        begin = max(i for i in range(start) if curve[i] >= near)
        recovered = steps[end] if end < len(steps) else None
        found.append(Sign("reward", steps[begin], peaks[start], min(curve[start:end]), recovered))
    return found


def norm_breaks(series: Series) -> Sign | None:
    """The first step of ``NOT_FINITE`` in a row whose gradient norm is NaN or infinite."""
    broken = [step in series.broken_norms for step in series.steps]
    for i in range(len(broken) - NOT_FINITE + 1):
        if all(broken[i : i + NOT_FINITE]):
            return Sign("gradient norm", series.steps[i])
    return None


def mismatch_grows(series: Series, window: int) -> Sign | None:
    """The first growth of the mismatch that lasts; ``step`` is where it passes the threshold."""
    kind, name = ("mean abs(pi - mu)", "prob_diff_mean") if series.known("prob_diff_mean") else ("KL", "k3_kl")
    pairs = [(step, math.log(value)) for step, value in zip(*series.points(name), strict=True) if value > 0]
    steps, logs = [step for step, _ in pairs], [value for _, value in pairs]
    if not _long_enough(steps, window):
        return None
    curve = smoothed(steps, logs, window)
    early = median(logs[: max(window, len(logs) // 10)])
    line = early + max(math.log(GROWTH), _unsure(steps, logs, window))
    found = next(_stretches(steps, [value > line for value in curve], window), None)
    if found is None:
        return None
    start, end = found
    recovered = steps[end] if end < len(steps) else None
    return Sign(kind, steps[start], math.exp(early), math.exp(max(curve[start:end])), recovered)


def _long_enough(steps: Sequence[int], window: int) -> bool:
    return len(steps) > 1 and steps[-1] - steps[0] + 1 >= _LEAST_WINDOWS * window


def _unsure(steps: Sequence[int], values: Sequence[float], window: int) -> float:
    """``NOISES`` standard deviations of a mean over one window, in which not every step need be logged; never zero."""
    in_window = max(1.0, window * len(steps) / (steps[-1] - steps[0] + 1))
    return max(NOISES * noise(values) / math.sqrt(in_window), _ROUNDING * max(map(abs, values)))


def _stretches(steps: Sequence[int], holds: Sequence[bool], window: int) -> Iterator[tuple[int, int]]:
    """Where it holds for a window of steps without a break: indices of the start and of what comes after."""
    start = 0
    for i in range(len(steps) + 1):
        if i < len(steps) and holds[i]:
            continue
        if i > start and steps[i - 1] - steps[start] + 1 >= window:
            yield start, i
        start = i + 1
