# SPDX-License-Identifier: Apache-2.0
"""Real checkpoints of Megatron's: resumed, under new settings, in another layout, to and from Megatron as it comes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]

Outcomes = Callable[[str], list[dict[str, Any]]]
LAYOUTS = pytest.mark.parametrize("layout", ["1-replicated", "ep2-replicated"])


@LAYOUTS
def test_a_resumed_run_goes_on_as_if_nothing_had_been(results: Outcomes, layout: str) -> None:
    for whole, resumed in zip(results(f"whole-{layout}"), results(f"resumed-{layout}"), strict=True):
        assert resumed["said"] == "the loss scale resumes at 512"
        assert resumed["state"] == whole["state"]
        assert resumed["state"]["hysteresis_left"] == resumed["state"]["growth_tracker"] == 1
        assert resumed["state"]["counts"]["skipped"] == 2
        assert len(whole["steps"]) == 6
        assert [step["digest"] for step in resumed["steps"]] == [step["digest"] for step in whole["steps"]]


@LAYOUTS
def test_without_the_optimizer_section_it_starts_anew_and_says_so(results: Outcomes, layout: str) -> None:
    for rank in results(f"without-section-{layout}"):
        assert rank["said"].startswith("WARNING: no loss scaler's state in an optimizer section in the checkpoint")
        assert rank["state"]["scale"] == rank["state"]["shown"] == 1024
        assert "skipped=False" in rank["steps"][0]["update"]


def test_settings_given_on_resume_win(results: Outcomes) -> None:
    for rank in results("other-settings-ep2-replicated"):
        assert rank["state"]["shown"] == 1024, "the new floor, above the saved 512"
        assert rank["state"]["settings"]["growth_interval"] == 2
        assert rank["state"]["counts"]["skipped"] == 2
        assert "the saved 512 is not within your min_scale=1024" in rank["said"]
    for rank in results("restarted-ep2-replicated"):
        assert rank["state"]["shown"] == 4, "a new init_scale is a new start"
        assert rank["state"]["counts"]["updates"] == 4


def test_parts_that_had_drifted_apart_go_on_together(results: Outcomes) -> None:
    for stock, rank in zip(results("of-stock-ep2-replicated"), results("from-stock-ep2-replicated"), strict=True):
        assert stock["scales"] == [8192, 2048], "Megatron saves scales that differ no more"
        assert rank["state"]["shown"] == 2048
        assert "parts of the optimizer were saved with scales from 2048 to 8192" in rank["said"]
        assert "loss_scale=2048" in rank["steps"][0]["update"]


def test_our_checkpoint_loads_where_nothing_of_ours_is(results: Outcomes) -> None:
    for rank in results("to-stock-ep2-replicated"):
        assert rank["scalers"] == [[512, 1, 1], [512, 1, 1]]


def test_a_sharded_checkpoint_goes_on_in_another_layout(results: Outcomes) -> None:
    (saved, _), (loaded,) = results("sharded-tp2"), results("sharded-to-1")
    assert loaded["state"] == saved["state"]
    assert loaded["state"]["counts"]["skipped"] == 2
    assert loaded["said"] == "the loss scale resumes at 512"
    assert "skipped=False" in loaded["steps"][0]["update"]


def test_somebody_else_s_state_changes_nothing(results: Outcomes) -> None:
    (found,) = results("broken-1-replicated")
    assert set(found["errors"]) == {"nothing", "number", "fsdp"}
    assert all(error["code"] == "scaler-state-unusable" for error in found["errors"].values())
    assert "FSDP and DeepSpeed" in found["errors"]["fsdp"]["error"]
    assert found["state"]["scale"] == 1024


@pytest.mark.parametrize("layout", ["1", "1-replicated"])
def test_megatron_s_warm_up_load_is_not_taken_for_a_resume(results: Outcomes, layout: str) -> None:
    """``DistributedOptimizer.sharded_state_dict(is_loading=True)`` loads its own ``state_dict()``, the same object."""
    (found,) = results(f"warm-up-{layout}")
    assert found == {"loaded": [0, 1], "kept": True}


def test_megatron_s_warm_up_load_is_the_call_that_we_know() -> None:
    """:meth:`SubOptimizerScaler.load_state_dict` recognises it by the identity of the object."""
    (folder,) = find_spec("megatron").submodule_search_locations
    source = Path(folder, "core", "optimizer", "distrib_optimizer.py").read_text()
    assert source.count("self.load_state_dict(self.state_dict())") == 1
