# SPDX-License-Identifier: Apache-2.0
"""The search for log-probs that are not finite, and what follows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fp16_patch.precision import Precision
from fp16_patch.rollout_health.non_finite import find_non_finite
from fp16_patch.rollout_health.overflow_policy import answers_to_mask, check_lengths
from tests.support.raising import raises_code


def test_one_nan_in_a_thousand_answers_is_found() -> None:
    log_probs = torch.full((1000, 32), -1.0)
    log_probs[417, 5] = math.nan
    found = find_non_finite(log_probs, torch.ones(1000, 32))
    assert (found.tokens, found.answers, found.first) == (1, 1, (417, 5))
    assert found.metrics("rollout") == {"rollout/non_finite_tokens": 1.0, "rollout/non_finite_answers": 1.0}


def test_padding_may_hold_nan() -> None:
    log_probs = torch.tensor([[-1.0, math.nan], [-2.0, -3.0]])
    found = find_non_finite(log_probs, torch.tensor([[1, 0], [1, 1]]))
    assert (found.tokens, found.answers, found.first) == (0, 0, None)


def test_an_empty_batch_has_no_share() -> None:
    assert find_non_finite(torch.zeros(0, 4), torch.zeros(0, 4)).share == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        find_non_finite(torch.zeros(2, 3), torch.zeros(2, 4))


@given(st.lists(st.lists(st.sampled_from([-1.0, math.nan, math.inf, -math.inf]), min_size=3, max_size=3), min_size=1))
def test_counts_equal_a_plain_loop(rows: list[list[float]]) -> None:
    found = find_non_finite(torch.tensor(rows), torch.ones(len(rows), 3))
    assert found.tokens == sum(not math.isfinite(value) for row in rows for value in row)
    assert found.affected.tolist() == [any(not math.isfinite(value) for value in row) for row in rows]


def _one_in_four() -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = torch.full((4, 3), -1.0)
    log_probs[2, 1:] = math.nan
    return log_probs, torch.tensor([[5, 6, 7], [5, 6, 7], [8, 0, 0], [5, 6, 7]])


def test_stop_names_step_share_position_and_ids() -> None:
    log_probs, tokens = _one_in_four()
    with raises_code("rollout-overflow") as caught:
        answers_to_mask(find_non_finite(log_probs, torch.ones(4, 3)), tokens, 7, Precision())
    for part in ("step 7", "2 tokens", "1 of 4 answers", "25.0%", "position 1", "[0, 0]", "bf16"):
        assert part in str(caught.value)


def test_mask_returns_the_affected_answers() -> None:
    log_probs, tokens = _one_in_four()
    precision = Precision(rollout_overflow="mask", rollout_overflow_max_share=0.25)
    masked = answers_to_mask(find_non_finite(log_probs, torch.ones(4, 3)), tokens, 7, precision)
    assert masked.tolist() == [False, False, True, False]


@pytest.mark.parametrize("share", [0.2, 0.0])
def test_mask_stops_above_the_share(share: float) -> None:
    log_probs, tokens = _one_in_four()
    precision = Precision(rollout_overflow="mask", rollout_overflow_max_share=share)
    with raises_code("rollout-overflow"):
        answers_to_mask(find_non_finite(log_probs, torch.ones(4, 3)), tokens, 7, precision)


def test_finite_log_probs_mask_nothing() -> None:
    found = find_non_finite(torch.zeros(2, 2), torch.ones(2, 2))
    assert not answers_to_mask(found, torch.zeros(2, 2), 1, Precision()).any()


def test_fewer_log_probs_than_tokens_are_refused() -> None:
    check_lengths([3, 0], [3, 0], 1)
    with raises_code("log-probs-incomplete"):
        check_lengths([3, 2], [3, 3], 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"rollout_overflow": "ignore"},
        {"rollout_overflow_max_share": 1.0},
        {"rollout_overflow_max_share": -0.1},
        {"rollout_overflow_max_share": math.nan},
        {"rollout_overflow_max_share": True},
        {"allow_truncated_sampling": "yes"},
        {"trace_rollout": 0},
        {"trace_rollout": True},
        {"trace_rollout": 1.5},
    ],
)
def test_unknown_values_of_the_settings_are_refused(settings: dict[str, object]) -> None:
    with raises_code("value-not-allowed"):
        Precision(**settings)  # type: ignore[arg-type]
