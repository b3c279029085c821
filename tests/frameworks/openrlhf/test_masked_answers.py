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

from fp16_patch import envs
from fp16_patch.precision import Precision

pytestmark = pytest.mark.skipif(find_spec("openrlhf") is None, reason="OpenRLHF is not installed")

FACTS = Path(__file__).with_name("masked_answers_facts.py")


def facts(**settings: Any) -> dict[str, Any]:
    """Run the facts under these settings of the flag."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    environment[envs.PRECISION] = Precision(**settings).to_environment()
    done = subprocess.run(
        [sys.executable, str(FACTS)], capture_output=True, text=True, timeout=110, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def masking() -> dict[str, Any]:
    return facts(rollout_overflow="mask")


def test_advantages_equal_those_of_the_run_without_the_masked_answers(masking: dict[str, Any]) -> None:
    assert len(masking["advantages"]) == 7
    assert max(masking["advantages"].values()) < 1e-5, masking["advantages"]


def test_the_loss_equals_that_of_the_batch_without_the_masked_answer(masking: dict[str, Any]) -> None:
    assert max(masking["losses"].values()) < 1e-6, masking["losses"]


def test_an_update_of_masked_answers_only_has_a_loss_of_zero(masking: dict[str, Any]) -> None:
    assert masking["no token"] == [0.0, 0.0]


def test_one_nan_masks_its_answer(masking: dict[str, Any]) -> None:
    counts = {"rollout/non_finite_tokens": 1, "rollout/non_finite_answers": 1, "rollout/masked_answers": 1}
    assert masking["check"]["one"] == {"metrics": counts, "left": 0, "masked": [[3]]}


def test_a_nan_between_two_turns_is_not_a_sampled_token(masking: dict[str, Any]) -> None:
    assert masking["check"]["none"]["masked"] is None
    assert not any(masking["check"]["none"]["metrics"].values())


def test_fewer_log_probs_than_tokens_are_one_error(masking: dict[str, Any]) -> None:
    error = masking["check"]["short"]
    assert error["code"] == "log-probs-incomplete"
    assert "step 5: answer 0 has 4 tokens and 3 log-probs" in error["text"]
    assert error["metrics"] == {}


def test_the_default_stops_and_names_step_and_position() -> None:
    error = facts()["check"]["one"]
    assert error["code"] == "rollout-overflow"
    assert "step 5: " in error["text"]
    assert "position 1 of answer 3; the token ids sampled from there on are [6, 8" in error["text"]
