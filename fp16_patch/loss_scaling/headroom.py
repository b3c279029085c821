# SPDX-License-Identifier: Apache-2.0
"""How far the scaled gradients are from both ends of FP16, over the last updates."""

from __future__ import annotations

from collections import deque
from statistics import fmean

from fp16_patch.loss_scaling.gradient_statistics import GradientStatistics, headroom_bits

SLICES = 16
"""Parts of the gradients that are looked at in turn, one an update: a sixteenth of a pass in place of one."""


class Health:
    """Of one scaler's gradients. Not saved: sixteen updates bring it back."""

    def __init__(self) -> None:
        self.peaks: deque[float] = deque(maxlen=SLICES)
        """Largest absolute true gradients of the last updates, each of another part, the first of all."""
        self.underflow_shares: deque[float] = deque(maxlen=SLICES)
        """Of the same parts, where they had any gradient."""

    @property
    def slices(self) -> int:
        """Of how many parts of the gradients the next update is to look at one."""
        return SLICES if self.peaks else 1

    def add(self, statistics: GradientStatistics, loss_scale: float) -> tuple[float | None, float | None]:
        """The headroom and the underflow share after an update that was made."""
        headroom = share = None
        if statistics.peak is not None:
            self.peaks.append(statistics.peak / loss_scale)
            headroom = headroom_bits(max(self.peaks) * loss_scale)
        if statistics.underflow_share is not None:
            self.underflow_shares.append(statistics.underflow_share)
            share = fmean(self.underflow_shares)
        return headroom, share
