# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of DeepSpeed's ZeRO-2 that an earlier version wrote loads as it was (tests/golden/saved)."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import golden_checks
import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(350),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


def test_the_committed_checkpoint_resumes(results: Callable[[str], list[dict[str, Any]]]) -> None:
    (loaded,) = results("golden-loaded")
    golden_checks.check_loaded("deepspeed", loaded)


def test_what_is_written_today_is_what_was_written(
    results: Callable[[str], list[dict[str, Any]]], zero_run: Path
) -> None:
    (written,) = results("golden-written")
    assert golden_checks.like_the_saved(written["state"]) == golden_checks.facts("deepspeed")["state"]
    place = Path("global_step9", "loss_scaler.json")
    today = json.loads((zero_run / "golden-written" / place).read_text())
    assert golden_checks.like_the_saved(today) == json.loads((golden_checks.SAVED / "deepspeed" / place).read_text())
    golden_checks.check_no_pickled_class(zero_run / "golden-written", files=2)


def test_no_class_of_this_package_is_pickled_into_it() -> None:
    names = golden_checks.check_no_pickled_class(golden_checks.SAVED / "deepspeed", files=2)
    assert "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler" in names, "our scaler goes in as DeepSpeed's own"
