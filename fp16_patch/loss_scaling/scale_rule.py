# SPDX-License-Identifier: Apache-2.0
"""The rule of dynamic loss scaling and all that it remembers, the same on every backend. Knows no torch."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, fields
from typing import Any

from fp16_patch.loss_scaling.state_file import HISTORY, validate
from fp16_patch.precision.loss_scaling import LossScaling


@dataclass
class Counts:
    """What has happened so far; all of it is saved and restored."""

    updates: int = 0
    """Optimizer steps made or skipped."""
    skipped: int = 0
    consecutive: int = 0
    """Updates skipped in a row, up to now."""
    growths: int = 0
    backoffs: int = 0


class ScaleRule:
    """How the scale moves: within ``min_scale`` and ``max_scale``; an overflow takes the hysteresis first.

    Sums and products of powers of two only: what FP32 gives on any device.
    """

    def __init__(self, settings: LossScaling) -> None:
        self.settings = settings
        self.scale = settings.init_scale
        self.growth_tracker = 0
        """Updates without an overflow since the last one, or since the scale last grew."""
        self.hysteresis_left = settings.hysteresis
        self.counts = Counts()
        self.history: deque[tuple[int, float]] = deque([(0, settings.init_scale)], maxlen=HISTORY)
        """(updates so far, scale from then on), oldest first."""

    @classmethod
    def going_on(
        cls,
        settings: LossScaling,
        scale: float,
        growth_tracker: int,
        hysteresis_left: int,
        counts: Counts | None = None,
    ) -> ScaleRule:
        """From the numbers of a framework's own scaler, which may be out of bounds; ``settings`` hold."""
        rule = cls(settings)
        rule.scale = rule.bounded(2.0 ** math.floor(math.log2(scale)))
        rule.growth_tracker = min(max(growth_tracker, 0), settings.growth_interval - 1)
        rule.hysteresis_left = min(max(hysteresis_left, 1), settings.hysteresis)
        rule.counts = counts or Counts()
        if rule.scale != rule.history[-1][1]:
            rule.history.append((rule.counts.updates, rule.scale))
        return rule

    def update(self, *, skipped: bool) -> None:
        """Count one update and move the scale for the next."""
        settings, scale = self.settings, self.scale
        self.counts.updates += 1
        self.counts.skipped += skipped
        self.counts.consecutive = self.counts.consecutive + 1 if skipped else 0
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
        self.move_to(scale)

    def move_to(self, scale: float) -> None:
        """Set the scale to the nearest one in bounds."""
        before, self.scale = self.scale, self.bounded(scale)
        if self.scale > before:
            self.counts.growths += 1
        elif self.scale < before:
            self.counts.backoffs += 1
        if self.scale != before:
            self.history.append((self.counts.updates, self.scale))

    def bounded(self, scale: float) -> float:
        return min(max(scale, self.settings.min_scale), self.settings.max_scale)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: scale, trackers, counts, history, and the settings it was made with."""
        return {
            "scale": self.scale,
            "growth_tracker": self.growth_tracker,
            "hysteresis_left": self.hysteresis_left,
            "counts": asdict(self.counts),
            "history": [list(entry) for entry in self.history],
            "settings": self.settings.as_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was saved, under this one's own settings.

        An ``init_scale`` other than the saved one is a new start of the scale; counts go on. A scale out of bounds
        becomes the nearest bound. Raises :class:`Fp16PatchError` on anything that :meth:`state_dict` cannot have
        returned, and changes nothing then.
        """
        state = validate(state_dict)
        settings = self.settings
        restart = settings.init_scale != state["settings"]["init_scale"]
        self.scale = settings.init_scale if restart else self.bounded(state["scale"])
        self.growth_tracker = 0 if restart else min(state["growth_tracker"], settings.growth_interval - 1)
        self.hysteresis_left = settings.hysteresis if restart else min(state["hysteresis_left"], settings.hysteresis)
        self.counts = Counts(**{field.name: state["counts"][field.name] for field in fields(Counts)})
        self.history = deque([(updates, value) for updates, value in state["history"]], maxlen=HISTORY)
        if self.scale != self.history[-1][1]:
            self.history.append((self.counts.updates, self.scale))
