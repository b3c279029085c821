# SPDX-License-Identifier: Apache-2.0
"""Summarize the arms of a run in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fp16_patch.lab.logs.runs import ArmRun

_END_STEPS = 3  # averaged at each end of the reward curve


@dataclass(frozen=True)
class RewardEnds:
    """The mean reward of the first and last three steps. ``rise`` is None if both ends share steps."""

    first3: float | None
    last3: float | None
    rise: float | None


@dataclass(frozen=True)
class Headline:
    """The ratios BF16 over FP16 of the mean mismatch, and the reward and skipped updates of each arm.

    A ratio uses the steps that both arms logged, so an arm that stopped early is compared on equal steps. Steps at
    which either arm's metric is not finite are left out, and ``how`` counts them. The ratio is None if an arm of either
    precision is missing or has no finite value, or if FP16's mean is zero.
    """

    prob_diff_ratio: float | None
    k3_kl_ratio: float | None
    how: str
    steps_compared: int
    reward: dict[str, RewardEnds]
    skipped_updates: dict[str, int | None]


def summarize(arms: Sequence[ArmRun]) -> Headline:
    """Compare the first BF16 arm with the first FP16 arm, and summarize every arm."""
    pair = compared_pair(arms)
    logged = [frozenset(arm.series.steps) for arm in pair]
    common = logged[0].intersection(*logged) if logged else frozenset()
    left_out = {
        name: common & {step for arm in pair for step in arm.series.non_finite_steps(name)}
        for name in ("prob_diff_mean", "k3_kl")
    }

    def mean_ratio(name: str) -> float | None:
        steps = common - left_out[name]
        return ratio(*(mean_or_none(arm.series.known(name, steps)) for arm in pair)) if pair else None

    excluded = [f"{name} in {len(steps)} steps" for name, steps in left_out.items() if steps]
    how = "mean over the training steps both arms logged, BF16 over FP16"
    return Headline(
        prob_diff_ratio=mean_ratio("prob_diff_mean"),
        k3_kl_ratio=mean_ratio("k3_kl"),
        how=f"{how}; left out because not finite: {', '.join(excluded)}" if excluded else how,
        steps_compared=len(common),
        reward={arm.name: _reward_ends(arm) for arm in arms},
        skipped_updates={arm.name: arm.skipped_updates for arm in arms},
    )


def compared_pair(arms: Sequence[ArmRun]) -> tuple[ArmRun, ...]:
    """Return the first BF16 arm and the first FP16 arm, which ratios compare; nothing if one is missing."""
    first = {arm.precision: arm for arm in reversed(arms)}
    return (first["bf16"], first["fp16"]) if {"bf16", "fp16"} <= first.keys() else ()


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean, or None for no values."""
    return fmean(values) if values else None


def ratio(above: float | None, below: float | None) -> float | None:
    """Return ``above / below``, or None if either is None or ``below`` is zero."""
    return above / below if above is not None and below else None


def _reward_ends(arm: ArmRun) -> RewardEnds:
    rewards = arm.series.known("reward")
    first, last = mean_or_none(rewards[:_END_STEPS]), mean_or_none(rewards[-_END_STEPS:])
    apart = len(rewards) >= 2 * _END_STEPS
    return RewardEnds(first, last, last - first if first is not None and last is not None and apart else None)
