# SPDX-License-Identifier: Apache-2.0
"""verl's own advantage function, with answers that the rollout's overflow has taken out."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fp16_patch.frameworks.verl import masked_answers
from fp16_patch.frameworks.verl.masked_answers import leave_groups, lone_answers

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")

KEYS = [f"{uid}_{session}_0" for uid in ("a", "b") for session in range(4)]
REWARDS = [1.0, 0.0, 3.0, 7.0, 2.0, 2.5, 0.0, 1.0]


@pytest.fixture(autouse=True)
def nothing_masked() -> Iterator[None]:
    yield
    masked_answers._MASKED.clear()


def advantages(keys: list[str], masked: set[str], estimator: str) -> dict[str, list[float]]:
    """Return each answer's advantages, where ``masked`` ones have lost their tokens as in a run."""
    from verl import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    rewards = torch.tensor([[0.0, REWARDS[KEYS.index(key)]] for key in keys])
    mask = torch.tensor([[key not in masked] * 2 for key in keys], dtype=torch.long)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask},
        non_tensors={"uid": np.array([key[0] for key in keys], dtype=object)},
    )
    masked_answers._MASKED.clear()
    masked_answers._MASKED.update(masked)
    compute = leave_groups.make(compute_advantage_for_multi_trajectories)
    result = compute(data, keys, adv_estimator=estimator, num_repeat=4, config=None)
    return dict(zip(keys, result.batch["advantages"].tolist(), strict=True))


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_the_others_get_what_they_get_without_masked_answers(estimator: str) -> None:
    masked = {"a_1_0", "b_0_0"}
    found = advantages(KEYS, masked, estimator)
    alone = advantages([key for key in KEYS if key not in masked], set(), estimator)
    for key in KEYS:
        assert found[key] == ([0.0, 0.0] if key in masked else pytest.approx(alone[key])), key


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_an_answer_left_alone_in_its_group_gets_no_advantage(estimator: str) -> None:
    found = advantages(KEYS, {"a_0_0", "a_1_0", "a_2_0"}, estimator)
    assert found["a_3_0"] == [0.0, 0.0]
    assert any(found["b_0_0"])


def test_outputs_of_one_session_are_one_answer() -> None:
    keys = ["a_0_0", "a_0_1", "a_1_0", "b_0_0"]
    assert lone_answers(["a", "a", "a", "b"], keys, {"a_1_0"}) == [0, 1]
    assert lone_answers(["a", "a", "a", "b"], keys, {"a_0_0", "a_0_1"}) == [2]
    assert lone_answers(["a", "a", "a", "b"], keys, ()) == [], "b was alone before"
