# SPDX-License-Identifier: Apache-2.0
"""A vLLM worker that fails in a weight update ends the run; stock verl hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(not (find_spec("verl") and find_spec("vllm")), reason="needs verl and vLLM"),
    pytest.mark.timeout(240),
]

CASES = Path(__file__).with_name("weight_transfer_cases.py")
FATES = ("succeeds", "is slow", "never starts", "fails half way", "returns early", "dies")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    platform = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "fp16_patch.lab.cpu.verl"}
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        process = subprocess.Popen(
            [sys.executable, str(CASES), *FATES],
            env={**os.environ, **platform, "RAY_TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # lets Ray end its own processes
            out, err = process.communicate()
            pytest.fail(f"a sender hangs: the one after the last that is done here\n{err[-3000:]}")
    assert process.returncode == 0, err[-3000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize("fate", ["succeeds", "is slow"])
def test_a_receiver_that_works_is_left_alone_however_slow(outcomes: dict[str, Any], fate: str) -> None:
    assert outcomes[fate]["error"] is None


@pytest.mark.parametrize(
    ("fate", "cause"),
    [
        ("never starts", "RuntimeError: no weight called layer.0 in this model"),
        ("fails half way", "RuntimeError: layer.2 has the wrong shape"),
        ("returns early", ""),
        ("dies", "ActorDiedError"),
    ],
)
def test_a_receiver_that_stops_ends_the_transfer_with_its_error(
    outcomes: dict[str, Any], fate: str, cause: str
) -> None:
    outcome = outcomes[fate]
    assert outcome["code"] == "weight-transfer-failed", outcome["error"]
    assert cause in outcome["error"]
    assert outcome["seconds"] < 20
