# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint of verl's FSDP engine that an earlier version wrote (tests/golden/saved)."""

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
    pytest.mark.timeout(450),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed"),
]


def test_the_committed_checkpoint_resumes(results: Callable[..., list[dict[str, Any]]]) -> None:
    (loaded,) = results("golden-loaded")
    golden_checks.check_loaded("fsdp", loaded)


def test_what_is_written_today_is_what_was_written(
    results: Callable[..., list[dict[str, Any]]], engine_runs: Path
) -> None:
    (written,) = results("golden-written")
    assert golden_checks.like_the_saved(written["state"]) == golden_checks.facts("fsdp")["state"]
    place = Path("global_step_9", "loss_scaler.json")
    today = json.loads((engine_runs / "flag" / "golden-written" / place).read_text())
    assert golden_checks.like_the_saved(today) == json.loads((golden_checks.SAVED / "fsdp" / place).read_text())
    golden_checks.check_no_pickled_class(engine_runs / "flag" / "golden-written", files=3)


def test_no_class_of_this_package_is_pickled_into_it() -> None:
    golden_checks.check_no_pickled_class(golden_checks.SAVED / "fsdp", files=3)
