# SPDX-License-Identifier: Apache-2.0
"""Measure the mismatch without correcting it, as docs/openrlhf.md describes, on OpenRLHF's own loss."""

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

FACTS = Path(__file__).with_name("policy_loss_facts.py")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """Return what ``policy_loss_facts.py`` prints."""
    flag = {envs.PRECISION: Precision("bf16", "bf16").to_environment()}
    environment = {**os.environ, **flag, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, str(FACTS)], capture_output=True, text=True, timeout=110, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def unchanged(facts: dict[str, Any]) -> dict[str, bool]:
    """Return loss and correction -> whether loss and gradient equal those without correction, bit for bit."""
    return dict(facts["unchanged"])


def test_a_ratio_clipped_to_1_asks_for_log_probs_and_corrects_nothing(unchanged: dict[str, bool]) -> None:
    assert unchanged["ppo measuring"], "docs/openrlhf.md says that the threshold 1 1 leaves the loss as it is"
    assert not unchanged["ppo clipping"], "a correction changes nothing here: the test cannot tell"


def test_gspo_is_corrected_whatever_the_threshold(unchanged: dict[str, bool]) -> None:
    assert not unchanged["gspo measuring"], "docs/openrlhf.md says that this way is not for gspo"


@pytest.mark.parametrize("name", ["advantages", "rollout_log_probs", "action_mask"])
def test_a_bad_loss_is_named_before_the_backward_and_makes_gradients_nan(facts: dict[str, Any], name: str) -> None:
    assert facts["found"][name] == {"found": ["actor", name], "nan": True}


def test_a_finite_loss_goes_to_the_backward_as_it_is(facts: dict[str, Any]) -> None:
    assert facts["found"][""] == {"found": None, "nan": False}
