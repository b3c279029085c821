# SPDX-License-Identifier: Apache-2.0
"""What became of one update, and the metrics every framework reports of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from fp16_patch.loss_scaling.scale_rule import Counts

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.gradient_statistics import GradientStatistics


@dataclass(frozen=True)
class Update:
    """What became of one update; the same on every rank."""

    skipped: bool
    """An inf or NaN somewhere: no weight, no optimizer state and no step count has changed."""
    grad_norm: float | None
    """Of the true gradients, before clipping; None on a skipped update, where there is none."""
    loss_scale: float
    """The scale this update's loss was multiplied by."""
    statistics: GradientStatistics | None = None
    """Of its gradients; None where the framework looked at them itself."""
    headroom_bits: float | None = None
    """How often the scale could have doubled before the largest gradient of the last 16 updates reached 65504. None
    on a skipped update and without health."""
    underflow_share: float | None = None
    """Share of gradient elements that are exactly zero, mean of the last 16 updates; None as above."""


def describe(update: Update, counts: Counts) -> dict[str, float]:
    """Return the metrics of one update. Average them over updates, except names with max or min in them."""
    metrics = {
        "loss_scale": update.loss_scale,
        "update_skipped": float(update.skipped),
        "updates_skipped_total/max": float(counts.skipped),
        "updates_skipped_in_a_row/max": float(counts.consecutive),
        "loss_scale_growths_total/max": float(counts.growths),
    }
    if not update.skipped:
        health = {
            "grad_underflow_share": update.underflow_share,
            "grad_headroom_bits/min": update.headroom_bits,
        }
        metrics |= {name: value for name, value in health.items() if value is not None}
    return metrics


def combined(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of several updates as one: means, but extremes of names with max or min in them."""
    values: dict[str, list[float]] = {}
    for one in metrics:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {
        name: max(some) if "max" in name else min(some) if "min" in name else fmean(some)
        for name, some in values.items()
    }
