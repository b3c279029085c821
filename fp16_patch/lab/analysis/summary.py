# SPDX-License-Identifier: Apache-2.0
"""The few numbers a comparison is read for."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from fp16_patch.lab.logs.runs import ArmRun

_ENDS = 3  # steps averaged at each end of the reward curve


def headline(arms: Sequence[ArmRun]) -> dict[str, Any]:
    """Ratios BF16 over FP16 of the mean over steps, and the reward at both ends of each arm.

    A ratio takes the steps both arms logged, so that an arm that stopped early is compared like with like. It is
    None where an arm of either precision is missing or has no finite value, or where FP16's mean is zero.
    """
    bf16 = next((arm for arm in arms if arm.precision == "bf16"), None)
    fp16 = next((arm for arm in arms if arm.precision == "fp16"), None)
    common = frozenset(bf16.series.steps) & frozenset(fp16.series.steps) if bf16 and fp16 else frozenset()
    return {
        "prob_diff_ratio": _ratio(bf16, fp16, "prob_diff_mean", common),
        "k3_kl_ratio": _ratio(bf16, fp16, "k3_kl", common),
        "how": "mean over the training steps both arms logged, BF16 over FP16",
        "steps_compared": len(common),
        "reward": {arm.name: _reward(arm) for arm in arms},
        "skipped_updates": {arm.name: arm.skipped_updates for arm in arms},
    }


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean of what there is."""
    return fmean(values) if values else None


def _ratio(bf16: ArmRun | None, fp16: ArmRun | None, name: str, steps: frozenset[int]) -> float | None:
    if bf16 is None or fp16 is None:
        return None
    above = mean_or_none(bf16.series.known(name, steps))
    below = mean_or_none(fp16.series.known(name, steps))
    return above / below if above is not None and below else None


def _reward(arm: ArmRun) -> dict[str, float | None]:
    rewards = arm.series.known("reward")
    first, last = mean_or_none(rewards[:_ENDS]), mean_or_none(rewards[-_ENDS:])
    apart = len(rewards) >= 2 * _ENDS  # else both ends share steps
    rise = last - first if first is not None and last is not None and apart else None
    return {"first3": first, "last3": last, "rise": rise}
