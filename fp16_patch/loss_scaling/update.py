# SPDX-License-Identifier: Apache-2.0
"""The result of one update, and its metrics in every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from fp16_patch.loss_scaling.scale_rule import Counts

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.gradient_statistics import GradientStatistics


COUNTS = ("loss_not_finite",)
"""Metrics of an update that are added up over updates."""


@dataclass(frozen=True)
class Update:
    """The result of one update; the same on every rank."""

    skipped: bool
    """Whether a gradient was inf or NaN: then no weight, no optimizer state and no step count has changed."""
    grad_norm: float | None
    """2-norm of the unscaled gradients before clipping; None on a skipped update."""
    loss_scale: float
    """The scale that this update's loss was multiplied by."""
    statistics: GradientStatistics | None = None
    """Statistics of its gradients; None where the engine checked them itself."""
    headroom_bits: float | None = None
    """How often the scale could have doubled before the largest gradient of the last 16 updates reached 65504. None
    on a skipped update, and if it was not measured."""
    underflow_share: float | None = None
    """Share of gradient elements that are exactly zero, mean of the last 16 updates; None as for the headroom."""
    loss_not_finite: bool = False
    """Whether it was skipped because a loss of any rank was not finite before it was scaled."""


def describe(update: Update, counts: Counts) -> dict[str, float]:
    """Return the metrics of one update, which :func:`combined` joins over updates."""
    measured = {"grad_underflow_share": update.underflow_share, "grad_headroom_bits/min": update.headroom_bits}
    return {
        "loss_scale": update.loss_scale,
        "update_skipped": float(update.skipped),
        "updates_skipped_total/max": float(counts.skipped),
        "updates_skipped_in_a_row/max": float(counts.consecutive),
        "loss_scale_growths_total/max": float(counts.growths),
        **describe_losses(update.loss_not_finite, counts),
        **{name: value for name, value in measured.items() if value is not None},
    }


def describe_losses(not_finite: bool, counts: Counts) -> dict[str, float]:
    """Return the metrics of losses that were not finite before they were scaled."""
    return {"loss_not_finite": float(not_finite), "losses_not_finite_total/max": float(counts.losses_not_finite)}


def combined(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of several updates as one: sums of counts, extremes for names with max or min, else means."""
    values: dict[str, list[float]] = {}
    for one in metrics:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {name: _rule(name)(some) for name, some in values.items()}


def _rule(name: str) -> Callable[[list[float]], float]:
    if name in COUNTS:
        return sum
    return max if "max" in name else min if "min" in name else fmean
