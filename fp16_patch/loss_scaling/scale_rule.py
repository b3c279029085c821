# SPDX-License-Identifier: Apache-2.0
"""The rule of dynamic loss scaling, the same on every engine. Does not import torch."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from fp16_patch.loss_scaling.state_file import HISTORY, validate
from fp16_patch.precision.loss_scaling import LossScaling


@dataclass
class Counts:
    """Counts since the start of training; all of them are saved and restored."""

    updates: int = 0
    """Optimizer steps, made or skipped."""
    skipped: int = 0
    consecutive: int = 0
    """Updates skipped in a row, up to the last one."""
    growths: int = 0
    backoffs: int = 0
    losses_not_finite: int = 0
    """Updates skipped because a loss was not finite before it was scaled; also in ``skipped``."""


class ScaleRule:
    """Move the scale within ``min_scale`` and ``max_scale``: lower it after overflows, raise it after a quiet interval.

    The scale is lowered by the last of ``hysteresis`` overflows and by each further one, until it has grown again. An
    update skipped for a loss that was not finite before it was scaled is only counted: no scale would have made it
    finite. The rule computes with powers of two only, so it gives the same numbers as FP32 on any device.
    """

    def __init__(self, settings: LossScaling) -> None:
        self.settings = settings
        self.scale = settings.init_scale
        self.growth_tracker = 0
        """Updates without an overflow since the last one, or since the scale last grew."""
        self.hysteresis_left = settings.hysteresis
        """Overflows until the scale is lowered; 1: by the next one."""
        self.counts = Counts()
        self.history: deque[tuple[int, float]] = deque([(0, settings.init_scale)], maxlen=HISTORY)
        """(updates so far, scale from then on), oldest first."""
        self.recent_skips: deque[int] = deque()
        """Numbers of the skipped updates among the last ``skip_rate_window``, counted from 1."""

    @classmethod
    def from_native_scaler(
        cls,
        settings: LossScaling,
        scale: float,
        growth_tracker: int,
        hysteresis_left: int,
        counts: Counts | None = None,
    ) -> ScaleRule:
        """Return a rule with the scale and trackers of an engine's own scaler, clamped to ``settings``."""
        rule = cls(settings)
        rule._resume(2.0 ** math.floor(math.log2(scale)), growth_tracker, hysteresis_left, counts or Counts())
        return rule

    def update(self, *, skipped: bool, loss_not_finite: bool = False) -> None:
        """Count one update and set the scale of the next.

        ``loss_not_finite`` says why it was skipped: a loss was not finite before it was scaled.
        """
        settings, scale = self.settings, self.scale
        self._count(skipped, skipped and loss_not_finite)
        if skipped and loss_not_finite:
            return
        if skipped:
            self.growth_tracker = 0
            if self.hysteresis_left > 1:
                self.hysteresis_left -= 1
            else:
                scale *= settings.backoff_factor
        else:
            self.growth_tracker += 1
            if self.growth_tracker >= settings.growth_interval:  # also at the ceiling
                self.growth_tracker, self.hysteresis_left = 0, settings.hysteresis
                scale *= settings.growth_factor
        self.set_scale(scale)

    def _count(self, skipped: bool, loss_not_finite: bool) -> None:
        counts = self.counts
        counts.updates += 1
        counts.skipped += skipped
        counts.consecutive = counts.consecutive + 1 if skipped else 0
        counts.losses_not_finite += loss_not_finite
        if skipped:
            self.recent_skips.append(counts.updates)
        self._forget_old_skips()

    def _forget_old_skips(self) -> None:
        while self.recent_skips and self.recent_skips[0] <= self.counts.updates - self.settings.skip_rate_window:
            self.recent_skips.popleft()

    def set_scale(self, scale: float) -> None:
        """Set the scale to ``scale``, clamped, and record a change in counts and history."""
        before, self.scale = self.scale, self.clamp(scale)
        self.counts.growths += self.scale > before
        self.counts.backoffs += self.scale < before
        self._record_scale()

    def clamp(self, scale: float) -> float:
        """Return ``scale``, or the nearest of ``min_scale`` and ``max_scale``."""
        return min(max(scale, self.settings.min_scale), self.settings.max_scale)

    def state_dict(self) -> dict[str, Any]:
        """Return scale, trackers, counts, history and settings as JSON types."""
        return {
            "scale": self.scale,
            "growth_tracker": self.growth_tracker,
            "hysteresis_left": self.hysteresis_left,
            "counts": asdict(self.counts),
            "history": [list(entry) for entry in self.history],
            "settings": self.settings.as_dict(),
            "recent_skips": list(self.recent_skips),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict`` under this rule's own settings.

        If the saved ``init_scale`` differs from this one's, the scale restarts at ``init_scale`` and the counts
        continue. A scale out of bounds is clamped.

        Raises:
            Fp16PatchError: :meth:`state_dict` cannot have returned this. Nothing is changed then.
        """
        state = validate(state_dict)
        self.history = deque(((updates, scale) for updates, scale in state["history"]), maxlen=HISTORY)
        position = (state["scale"], state["growth_tracker"], state["hysteresis_left"])
        if state["settings"]["init_scale"] != self.settings.init_scale:
            position = (self.settings.init_scale, 0, self.settings.hysteresis)
        self.recent_skips = deque(state["recent_skips"])
        self._resume(*position, Counts(**state["counts"]))

    def _resume(self, scale: float, growth_tracker: int, hysteresis_left: int, counts: Counts) -> None:
        """Continue from these values, clamped to the settings."""
        self.scale, self.counts = self.clamp(scale), counts
        self.growth_tracker = min(max(growth_tracker, 0), self.settings.growth_interval - 1)
        self.hysteresis_left = min(max(hysteresis_left, 1), self.settings.hysteresis)
        self._forget_old_skips()
        self._record_scale()

    def _record_scale(self) -> None:
        if self.scale != self.history[-1][1]:
            self.history.append((self.counts.updates, self.scale))
