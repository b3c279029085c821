# SPDX-License-Identifier: Apache-2.0
"""Test overflows, skips, checkpoints and kills on verl's own engine, with the flag and without."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engine_ranks import NO_RESULT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(450),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed"),
]

STRATEGIES = pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
Outcomes = Callable[..., list[dict[str, Any]]]


@STRATEGIES
def test_a_skip_moves_nothing_and_says_so(results: Outcomes, strategy: str) -> None:
    for result in results(f"skip-{strategy}"):
        skipped, made = result["updates"]
        assert skipped["changed"] == [], "weights, optimizer steps or the LR schedule moved on a skipped update"
        assert "grad_norm" not in skipped["metrics"]
        assert skipped["metrics"]["update_skipped"] == [1.0]
        assert skipped["metrics"]["updates_skipped_total/max"] == [1.0]
        assert skipped["metrics"]["updates_skipped_in_a_row/max"] == [1.0]
        assert made["changed"] == ["weights", "steps", "lr"]
        assert math.isfinite(made["metrics"]["grad_norm"])
        assert made["metrics"]["updates_skipped_in_a_row/max"] == [0.0]
        assert 0 <= made["metrics"]["grad_underflow_share"][0] < 1
        assert math.isfinite(made["metrics"]["grad_headroom_bits/min"][0])


LAYOUTS = (
    "alone",
    "hsdp",
    "hsdp-fsdp1",
    "replicated",
    "orig-params",
    "offload-policy",
    "offloaded",
    "offloaded-fsdp1",
    "no-sync",
    "lora",
    "lora-fsdp1",
    "fused",
    "sgd",
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_skips_together_and_has_stocks_norm(results: Outcomes, layout: str) -> None:
    ours = results(f"layout-{layout}")
    # Stock verl cannot run a fused optimizer (below); the norm is the same with a plain one.
    stock = results(f"layout-{'offloaded' if layout == 'fused' else layout}", "stock")
    assert len(ours) == len(stock)
    for mine, verls in zip(ours, stock, strict=True):
        skipped, made = mine["updates"]
        assert skipped["changed"] == []
        assert {"weights", "lr"} <= set(made["changed"])
        assert made["metrics"] == ours[0]["updates"][1]["metrics"], "the ranks do not agree"
        norm = verls["updates"][1]["metrics"]["grad_norm"]
        assert made["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_stock_verl_crashes_on_a_fused_optimizer(outcomes: Outcomes) -> None:
    for outcome in outcomes("layout-fused", "stock"):
        assert "doesn't match the broadcast shape" in outcome["error"]


def test_stock_verl_hides_the_skip(results: Outcomes) -> None:
    for result in results("skip-fsdp2", "stock"):
        skipped, _ = result["updates"]
        assert "weights" not in skipped["changed"]
        assert "lr" in skipped["changed"], "verl holds its schedule now: fsdp-lr-scheduler-step can go"
        assert not math.isfinite(skipped["metrics"]["grad_norm"])
        assert not [name for name in skipped["metrics"] if "skip" in name or "scale" in name]


def test_stock_verl_steps_on_nan_after_many(results: Outcomes) -> None:
    for result in results("many-nans", "stock"):
        assert result["scale"] == 0.0
        assert not result["finite"]


def test_no_number_of_nans_gets_through(results: Outcomes) -> None:
    for result in results("many-nans"):
        assert result["scale"] == 1.0
        assert result["finite"]
        assert result["metrics"]["update_skipped"] == [0.0]


@STRATEGIES
def test_too_many_skips_stop_the_run_with_a_report(results: Outcomes, engine_runs: Path, strategy: str) -> None:
    for result in results(f"too-many-skips-{strategy}"):
        assert result["done"] == 2
        assert result["code"] == "training-diverged"
        assert "fp16_patch.loss_scaling.max_consecutive_skips=3" in result["error"]
        assert not result["changed"]
        assert result["scale"] == 2.0**16, "a loss that is NaN is no overflow"
    report = json.loads((engine_runs / "flag" / "reports" / "overflow_report_actor.json").read_text())
    assert "loss" in json.dumps(report["advice"])


@STRATEGIES
def test_a_traced_update_is_the_same_update(results: Outcomes, engine_runs: Path, strategy: str) -> None:
    assert results(f"traced-{strategy}") == results(f"not-traced-{strategy}")
    assert (engine_runs / "flag" / "reports" / "trace_of_update_2_actor.txt").exists()


@STRATEGIES
@pytest.mark.parametrize("where", ["in-update", "in-checkpoint", "between"])
def test_killed_and_resumed_is_uninterrupted(results: Outcomes, outcomes: Outcomes, strategy: str, where: str) -> None:
    for outcome in outcomes(f"killed-{where}-{strategy}"):
        assert outcome.get("code") == NO_RESULT, f"it was not killed: {outcome}"
    whole = results(f"uninterrupted-{strategy}")
    scales = [step["scale"] for step in whole[0]["steps"].values()]
    assert len(set(scales)) > 1, f"the scale never moved, so nothing was tried: {scales}"
    assert all(math.isfinite(loss) for step in whole[0]["steps"].values() for loss in step["loss"])
    for resumed, uninterrupted in zip(results(f"resumed-{where}-{strategy}"), whole, strict=True):
        assert resumed["start"] == 4
        assert resumed["resumed_at"] == uninterrupted["steps"]["4"]["scale"]
        assert resumed["steps"] == {step: uninterrupted["steps"][step] for step in ("5", "6", "7", "8")}


def test_stock_verl_loses_the_scale(results: Outcomes, outcomes: Outcomes) -> None:
    for outcome in outcomes("killed-between-fsdp2", "stock"):
        assert outcome.get("code") == NO_RESULT
    whole = results("uninterrupted-fsdp2", "stock")[0]["steps"]
    resumed = results("resumed-between-fsdp2", "stock")[0]
    assert whole["4"]["scale"] != 2.0**16, "the scale is the initial one: nothing to lose"
    assert resumed["resumed_at"] == 2.0**16


def test_a_checkpoint_without_or_with_a_broken_state(results: Outcomes) -> None:
    for result in results("other-checkpoints"):
        assert [error["code"] for error in result["damaged"]] == ["scaler-state-unusable"]
        assert result["untouched"], "weights were loaded although the scaler's state was refused"
        assert result["missing"] == []
        assert result["loaded"]


def test_the_state_does_not_depend_on_the_number_of_ranks(results: Outcomes) -> None:
    (result,) = results("rescaled")
    assert result["saved"] == result["scale"] == result["used"][0]


def test_settings_given_on_resume_win(results: Outcomes) -> None:
    for result in results("new-settings"):
        assert result["start"] == 8
        assert result["resumed_at"] == 2.0**10
