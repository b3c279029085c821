# SPDX-License-Identifier: Apache-2.0
"""Masked answers leave group, loss and means of OpenRLHF's own functions as if they had never been sampled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("openrlhf") is None, reason="OpenRLHF is not installed")

FACTS = Path(__file__).with_name("masked_answers_facts.py")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """Return what the functions do with masked answers, and what the check does in the default mode."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, str(FACTS)], capture_output=True, text=True, timeout=110, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_advantages_equal_those_of_the_run_without_the_masked_answers(facts: dict[str, Any]) -> None:
    assert len(facts["advantages"]) == 7
    assert max(facts["advantages"].values()) < 1e-5, facts["advantages"]


def test_metrics_of_an_epoch_equal_those_without_the_masked_answers(facts: dict[str, Any]) -> None:
    named = {"kl", "group_reward_std", "is_filter_ratio", "reward", "response_length", "policy_loss", "vllm_kl"}
    assert len(facts["metrics"]) == 4
    for case, differences in facts["metrics"].items():
        assert named <= differences.keys()
        assert {name: value for name, value in differences.items() if value > 1e-6} == {}, case


def test_the_loss_equals_that_of_the_batch_without_the_masked_answer(facts: dict[str, Any]) -> None:
    assert max(facts["losses"].values()) < 1e-6, facts["losses"]


def test_an_update_of_masked_answers_only_has_a_loss_of_zero(facts: dict[str, Any]) -> None:
    assert facts["no token"] == [0.0, 0.0]


def test_one_nan_masks_its_answer(facts: dict[str, Any]) -> None:
    counts = {"rollout/non_finite_tokens": 1, "rollout/non_finite_answers": 1, "rollout/masked_answers": 1}
    assert facts["check"]["one"] == {"metrics": counts, "left": 0, "masked": [[3]]}


def test_a_nan_between_two_turns_is_not_a_sampled_token(facts: dict[str, Any]) -> None:
    assert facts["check"]["none"]["masked"] is None
    assert not any(facts["check"]["none"]["metrics"].values())


def test_fewer_log_probs_than_tokens_are_one_error(facts: dict[str, Any]) -> None:
    error = facts["check"]["short"]
    assert error["code"] == "log-probs-incomplete"
    assert "step 5: answer 0 has 4 tokens and 3 log-probs" in error["text"]
    assert error["metrics"] == {}


def test_the_default_stops_and_names_step_and_position(facts: dict[str, Any]) -> None:
    error = facts["stop"]
    assert error["code"] == "rollout-overflow"
    assert "step 5: " in error["text"]
    assert "position 1 of answer 3; the token ids sampled from there on are [6, 8]" in error["text"]
    assert "no trace of vLLM's modules: " in error["text"], "a trace that fails hides no overflow"
