# SPDX-License-Identifier: Apache-2.0
"""Take masked answers out of their group's mean and deviation, where the framework computes both over full groups.

A masked answer gets a reward that leaves the group's mean as it is without the answer. What then still counts the
answer is the group's size, and for that the results are multiplied by an exact factor.
"""

from __future__ import annotations

import torch

GROUP_MEAN = ("rloo", "reinforce_baseline", "dr_grpo", "group_norm")
"""OpenRLHF's estimators that subtract a group's mean reward (``compute_advantages_and_returns``)."""


def replace_rewards(rewards: torch.Tensor, masked: torch.Tensor, estimator: str) -> torch.Tensor:
    """Return ``rewards`` with the masked answers' set to the mean that their baseline has without them.

    ``rewards`` (float) and ``masked`` (boolean) are ``[groups, answers of a group]``. The mean is the group's, the
    batch's for ``flash_reinforce``, and 0 for estimators without a baseline, whose masked advantages nobody reads.
    """
    kept = torch.where(masked, 0.0, rewards)
    count = (~masked).to(rewards.dtype)
    if estimator in GROUP_MEAN:
        mean = kept.sum(-1, keepdim=True) / count.sum(-1, keepdim=True).clamp(min=1)
    elif estimator == "flash_reinforce":
        mean = kept.sum() / count.sum().clamp(min=1)
    else:
        mean = torch.zeros_like(kept[:1, :1])
    return torch.where(masked, mean, rewards)


def group_deviations(rewards: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Return the unbiased deviation of the rewards that stay in each group, ``[groups, answers of a group]``.

    It is 0 where fewer than two stay.
    """
    count = (~masked).sum(-1, keepdim=True).to(rewards.dtype)
    mean = torch.where(masked, 0, rewards).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = torch.where(masked, 0, (rewards - mean).square()).sum(-1, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt().expand(rewards.shape)


def advantage_factors(masked: torch.Tensor, estimator: str) -> torch.Tensor:
    """Return what each group-relative reward must be multiplied by, float64 ``[groups, answers of a group]``.

    With n answers of which m stay: ``rloo`` divides by n - 1 in place of m - 1, ``group_norm`` takes the deviation
    over n - 1 degrees of freedom in place of m - 1. An answer that is alone in its group after masking gets 0, as a
    masked one does.
    """
    n = masked.shape[-1]
    stay = (~masked).sum(-1, keepdim=True).to(torch.float64)
    factor = torch.ones_like(stay)
    if n > 1 and estimator == "rloo":
        factor = stay / (stay - 1).clamp(min=1) * (n - 1) / n
    elif n > 1 and estimator == "group_norm":
        factor = ((stay - 1) / (n - 1)).clamp(min=0).sqrt()
    if n > 1 and estimator in GROUP_MEAN:
        factor = torch.where(stay > 1, factor, torch.zeros_like(factor))
    return torch.where(masked, 0.0, factor.expand(masked.shape))
