# SPDX-License-Identifier: Apache-2.0
"""Group-relative rewards with masked answers equal those computed without these answers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fp16_patch.rollout_health.groups import advantage_factors, replace_rewards

GROUP = 5


def group_relative(rewards: torch.Tensor, estimator: str) -> torch.Tensor:
    """Return OpenRLHF 0.11.2's shaped rewards of full groups (``compute_advantages_and_returns``)."""
    n = rewards.shape[-1]
    if estimator == "rloo":
        return rewards - (rewards.sum(-1, keepdim=True) - rewards) / (n - 1)
    if estimator in ("reinforce_baseline", "dr_grpo"):
        return rewards - rewards.mean(-1, keepdim=True)
    if estimator == "group_norm":
        return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-9)
    assert estimator == "flash_reinforce"
    return rewards - rewards.mean()


@pytest.mark.parametrize("estimator", ["rloo", "reinforce_baseline", "dr_grpo", "group_norm"])
@given(
    rewards=st.lists(st.floats(-10, 10).map(lambda x: round(x, 2)), min_size=GROUP, max_size=GROUP, unique=True),
    masked=st.sets(st.integers(0, GROUP - 1), max_size=GROUP - 2),
)
def test_the_others_get_what_they_get_without_masked_answers(
    estimator: str, rewards: list[float], masked: set[int]
) -> None:
    group = torch.tensor([rewards], dtype=torch.float64)
    gone = torch.tensor([[i in masked for i in range(GROUP)]])
    shaped = group_relative(replace_rewards(group, gone, estimator), estimator) * advantage_factors(gone, estimator)
    expected = group_relative(group[~gone].reshape(1, -1), estimator)
    torch.testing.assert_close(shaped[~gone], expected[0], rtol=1e-7, atol=1e-9)
    assert not shaped[gone].any()


@pytest.mark.parametrize("estimator", ["rloo", "reinforce_baseline", "dr_grpo", "group_norm"])
def test_an_answer_left_alone_in_its_group_gets_no_advantage(estimator: str) -> None:
    gone = torch.tensor([[True, False]])
    rewards = replace_rewards(torch.tensor([[3.0, 1.0]]), gone, estimator)
    shaped = group_relative(rewards, estimator).nan_to_num() * advantage_factors(gone, estimator)
    assert shaped.tolist() == [[0.0, 0.0]]


def test_the_batch_mean_of_flash_reinforce_leaves_masked_answers_out() -> None:
    rewards, gone = torch.tensor([[1.0], [3.0], [100.0]]), torch.tensor([[False], [False], [True]])
    shaped = group_relative(replace_rewards(rewards, gone, "flash_reinforce"), "flash_reinforce")
    factors = advantage_factors(gone, "flash_reinforce")
    assert (shaped * factors).flatten().tolist() == [-1.0, 1.0, 0.0]


@pytest.mark.parametrize("estimator", ["gae", "reinforce"])
def test_estimators_without_a_baseline_keep_the_others_as_they_are(estimator: str) -> None:
    rewards, gone = torch.tensor([[1.0, 3.0]]), torch.tensor([[False, True]])
    kept = replace_rewards(rewards, gone, estimator) * advantage_factors(gone, estimator)
    assert kept.tolist() == [[1.0, 0.0]]
