# SPDX-License-Identifier: Apache-2.0
"""Real checkpoints of DeepSpeed: killed and resumed, under new settings, to and from DeepSpeed as it comes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engine_ranks import NO_RESULT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(350),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

Outcomes = Callable[[str], list[dict[str, Any]]]
STAGES = pytest.mark.parametrize("stage", [2, 3])


@STAGES
@pytest.mark.parametrize("where", ["between", "in-update", "in-checkpoint"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    outcomes: Outcomes, results: Outcomes, stage: int, where: str
) -> None:
    assert all(rank.get("code") == NO_RESULT for rank in outcomes(f"killed-{where}-{stage}")), "it was not killed"
    for whole, resumed in zip(results(f"whole-{stage}"), results(f"resumed-{where}-{stage}"), strict=True):
        assert resumed["start"] == 4
        assert resumed["resumed_at"] == whole["steps"]["4"]["scale"] == 256
        assert resumed["state"]["growth_tracker"] == resumed["state"]["hysteresis_left"] == 1
        assert resumed["state"]["counts"]["skipped"] == 2
        assert resumed["steps"] == {step: made for step, made in whole["steps"].items() if int(step) > 4}


@STAGES
def test_settings_given_on_resume_win(results: Outcomes, stage: int) -> None:
    for rank in results(f"other-settings-{stage}"):
        assert rank["start"] == 8
        assert rank["resumed_at"] == 512, "the new ceiling, below the saved 1024"
        assert rank["state"]["settings"]["growth_interval"] == 5
        assert rank["state"]["counts"]["skipped"] == 3
        assert rank["state"]["history"][0] == [0, 512], "from before"
    for rank in results(f"restart-settings-{stage}"):
        assert rank["resumed_at"] == 16, "a new init_scale is a new start"
        assert rank["state"]["counts"]["updates"] == 8


@STAGES
def test_stock_ignores_them(results: Outcomes, stage: int) -> None:
    for rank in results(f"stock-other-settings-{stage}"):
        assert rank["state"]["scale_window"] == 2, "it was given 7"
        assert rank["state"]["min_scale"] == 1, "it was given 4"
        assert rank["resumed_at"] == 128


@STAGES
def test_a_checkpoint_of_stock_resumes_at_its_scale(results: Outcomes, log: str, stage: int) -> None:
    for rank in results(f"from-stock-{stage}"):
        assert rank["resumed_at"] == 128
        assert rank["state"]["settings"]["growth_interval"] == 2
        assert rank["state"]["counts"]["updates"] == 8
        assert rank["state"]["counts"]["skipped"] == 3
        assert rank["steps"]["9"]["norm"] > 0
    assert "the loss scale resumes at 128, DeepSpeed's own in " in log


@STAGES
def test_our_checkpoint_loads_where_nothing_of_ours_is(results: Outcomes, stage: int) -> None:
    for rank in results(f"stock-to-stock-{stage}"):
        assert rank["held"] == "deepspeed.runtime.fp16.loss_scaler"
        assert rank["resumed_at"] == 1024
        assert rank["steps"]["9"]["norm"] > 0
        assert rank["fields"]["cur_scale"] == "1024.0"
        assert rank["fields"]["scale_window"] == "2"
        assert set(rank["fields"]) == set(rank["stock_fields"])


@STAGES
def test_our_readable_file_counts_and_not_the_pickle(results: Outcomes, stage: int) -> None:
    for rank in results(f"edited-{stage}"):
        assert rank["state"]["counts"]["consecutive"] == 3


def test_a_damaged_file_is_the_same_error_on_every_rank(results: Outcomes) -> None:
    for rank in results("damaged"):
        assert rank["code"] == "scaler-state-unusable"
        assert "loss_scaler.json" in rank["error"]


@STAGES
def test_a_static_scale_is_no_scale_to_go_on_from(results: Outcomes, log: str, stage: int) -> None:
    for rank in results(f"from-static-{stage}"):
        assert rank["resumed_at"] == 512
        assert rank["steps"]["9"]["scale"] == 512
        assert rank["steps"]["9"]["norm"] > 0
    assert "WARNING: no loss_scaler.json in " in log


def test_weights_alone_are_a_new_start(results: Outcomes) -> None:
    for rank in results("module-only"):
        assert rank == {"scale": 512, "updates": 0}


@STAGES
def test_the_file_lies_in_the_folder_of_its_checkpoint(results: Outcomes, zero_run: Path, stage: int) -> None:
    results(f"whole-{stage}")
    folders = sorted((zero_run / f"checkpoints-whole-{stage}").glob("global_step*"))
    assert len(folders) == 8
    assert all((folder / "loss_scaler.json").is_file() for folder in folders)
