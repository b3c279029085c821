# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of megatron-core that an earlier version wrote loads as it was (tests/golden/saved)."""

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
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]


def test_the_committed_checkpoint_resumes(results: Callable[[str], list[dict[str, Any]]]) -> None:
    (loaded,) = results("golden-loaded")
    assert loaded["said"] == "the loss scale resumes at 512"
    golden_checks.check_loaded("megatron", loaded)


def test_what_is_written_today_is_what_was_written(
    results: Callable[[str], list[dict[str, Any]]], cases_run: Path
) -> None:
    import torch

    (written,) = results("golden-written")
    assert golden_checks.like_the_saved(written["state"]) == golden_checks.facts("megatron")["state"]
    folders = (golden_checks.SAVED / "megatron", cases_run / "golden-written")
    was, now = (torch.load(folder / "checkpoint.pt", weights_only=False)["optimizer"] for folder in folders)
    assert set(was["grad_scaler"]) == {"scale", "growth_tracker", "hysteresis_tracker", "fp16_patch"}
    for scaler in (was["grad_scaler"], now["grad_scaler"]):
        scaler["fp16_patch"] = golden_checks.like_the_saved(json.loads(scaler["fp16_patch"]))
    assert now["grad_scaler"] == was["grad_scaler"]
    golden_checks.check_no_pickled_class(folders[1], files=1)


def test_no_class_of_this_package_is_pickled_into_it() -> None:
    golden_checks.check_no_pickled_class(golden_checks.SAVED / "megatron", files=1)
