# SPDX-License-Identifier: Apache-2.0
"""Measure the mismatch without correcting it, as docs/openrlhf.md describes, on OpenRLHF's own loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("openrlhf") is None, reason="OpenRLHF is not installed")

FACTS = Path(__file__).with_name("policy_loss_facts.py")


@pytest.fixture(scope="module")
def unchanged() -> dict[str, bool]:
    """Return loss and correction -> whether loss and gradient equal those without correction, bit for bit."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, str(FACTS)], capture_output=True, text=True, timeout=110, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_ratio_clipped_to_1_asks_for_log_probs_and_corrects_nothing(unchanged: dict[str, bool]) -> None:
    assert unchanged["ppo measuring"], "docs/openrlhf.md says that the threshold 1 1 leaves the loss as it is"
    assert not unchanged["ppo clipping"], "a correction changes nothing here: the test cannot tell"


def test_gspo_is_corrected_whatever_the_threshold(unchanged: dict[str, bool]) -> None:
    assert not unchanged["gspo measuring"], "docs/openrlhf.md says that this way is not for gspo"
