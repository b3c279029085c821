# SPDX-License-Identifier: Apache-2.0
"""How far the scaled gradients of the last updates are from both ends of FP16's range."""

from __future__ import annotations

from collections import deque
from statistics import fmean

from fp16_patch.loss_scaling.gradient_statistics import GradientStatistics, headroom_bits

NUM_SLICES = 16
"""Equal slices of the gradients. Each update measures one, so the cost is a sixteenth of a pass."""


class HeadroomTracker:
    """Track headroom and underflow of one scaler's gradients. Not saved: sixteen updates restore it."""

    def __init__(self) -> None:
        self.peaks: deque[float] = deque(maxlen=NUM_SLICES)
        """Largest absolute unscaled gradients of the last updates. The first is of all gradients, the others are each
        of one slice."""
        self.underflow_shares: deque[float] = deque(maxlen=NUM_SLICES)
        """Underflow shares of the same slices. Slices without a gradient are left out."""

    @property
    def num_slices(self) -> int:
        """Return the number of slices of which the next update measures one; 1 at the first update."""
        return NUM_SLICES if self.peaks else 1

    def add(self, statistics: GradientStatistics, loss_scale: float) -> tuple[float | None, float | None]:
        """Return the headroom in bits and the underflow share after an update that was not skipped."""
        headroom = share = None
        if statistics.peak is not None:
            self.peaks.append(statistics.peak / loss_scale)
            headroom = headroom_bits(max(self.peaks) * loss_scale)
        if statistics.underflow_share is not None:
            self.underflow_shares.append(statistics.underflow_share)
            share = fmean(self.underflow_shares)
        return headroom, share
