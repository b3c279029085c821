# SPDX-License-Identifier: Apache-2.0
"""Test verl's own MegatronEngine under the flag, over TP, PP, DP and EP; stock: test_stock_megatron.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(450)]

Ranks = list[dict[str, Any]]
Results = Callable[[str], Ranks]
LAYOUT = pytest.mark.parametrize("layout", ["1", "tp2", "pp2", "vpp2", "tp2pp2", "dp2", "moe-1", "moe-ep2"])
FP16_STEP = 2.0**-10
"""Between neighbouring FP16 numbers, relative to the power of two below them."""


def metrics_of(ranks: Ranks, number: int) -> dict[str, Any]:
    """Of one update, from a rank that has them."""
    return next(found for rank in ranks if "loss_scale" in (found := rank["updates"][number]["metrics"]))


@LAYOUT
def test_an_overflow_on_one_rank_is_a_skipped_update_on_all(flagged: Results, layout: str) -> None:
    ranks = flagged(f"skip-{layout}")
    for rank in ranks:
        good, skipped, after = rank["updates"]
        assert skipped["changed"] == [], "weights, Adam's steps or the LR schedule moved on a skipped update"
        assert good["changed"] == after["changed"] == ["lr", "steps", "weights"]
        assert set(good["scales"]) == {65536.0}
        assert set(skipped["scales"]) == set(after["scales"]) == {32768.0}
    told = metrics_of(ranks, 1)
    assert told["update_skipped"] == told["updates_skipped_total/max"] == told["updates_skipped_in_a_row/max"] == [1.0]
    assert "grad_norm" not in told, "there is none on a skipped update"
    good, after = metrics_of(ranks, 0), metrics_of(ranks, 2)
    assert (good["loss_scale"], told["loss_scale"], after["loss_scale"]) == ([65536.0], [65536.0], [32768.0])
    assert after["updates_skipped_in_a_row/max"] == [0.0]
    assert 0 < after["grad_norm"] < 10
    assert {"grad_underflow_share", "grad_headroom_bits/min"} <= set(after)


@pytest.mark.parametrize("layout", ["1", "pp2", "dp2"])
def test_an_overflow_in_the_last_micro_batch_of_one_rank(flagged: Results, layout: str) -> None:
    ranks = flagged(f"late-{layout}")
    assert [rank["updates"][1]["changed"] for rank in ranks] == [[]] * len(ranks)
    assert [rank["updates"][2]["changed"] for rank in ranks] == [["lr", "steps", "weights"]] * len(ranks)
    assert metrics_of(ranks, 1)["update_skipped"] == [1.0]
    assert ranks[-1]["spoilt"], "that update had other micro-batches: nothing was infinite"


@pytest.mark.parametrize("case", ["dp2", "pp2", "bf16-dp2"])
def test_a_bad_loss_on_one_rank_skips_on_all_and_leaves_the_scale(flagged: Results, case: str) -> None:
    """Without a scaler stock Megatron would step on it."""
    for rank in flagged(f"bad-loss-{case}"):
        assert [update["changed"] for update in rank["updates"]] == [True, False, True]
        assert [update["found"] for update in rank["updates"]] == [False, True, False]
        assert {update["scale"] for update in rank["updates"]} == {65536.0}
        for update, bad in zip(rank["updates"], (False, True, False), strict=True):
            if update["not_finite"] is not None:  # only ranks with the loss have metrics
                assert update["not_finite"] == [float(bad)]
                assert update["grad_norm"] == (not bad)


def test_an_overflow_of_experts_alone_skips_everything(flagged: Results) -> None:
    for rank in flagged("skip-experts"):
        assert [update["changed"] for update in rank["updates"]][1] == []
        assert [update["scales"] for update in rank["updates"]] == [[65536.0] * 2, [32768.0] * 2, [32768.0] * 2]


def test_the_scales_of_a_chain_stay_one_and_gradients_of_experts_right(flagged: Results) -> None:
    """On stock Megatron they are 8 times too large after the same three overflows."""
    for rank in flagged("drift"):
        before, after = rank["0"], rank["3"]
        assert after["scales"] == [8192.0, 8192.0]
        assert after["norms"] == pytest.approx(before["norms"], rel=1e-5)


@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2", "vpp2", "tp2pp2", "moe-ep2"])
def test_weights_are_those_of_one_process_after_the_same_faults(
    flagged: Results, flagged_runs: Path, layout: str
) -> None:
    """Three updates made, one skipped. Sums over ranks are rounded in another order, and Adam with an epsilon of 1
    moves weights only as far as gradients differ: two steps of FP16 at most, and few weights by any."""
    alone = "moe-1" if layout.startswith("moe") else "1"
    assert {tuple(rank["steps"]) for rank in flagged(f"faults-{layout}") + flagged(f"faults-{alone}")} == {(3.0,)}
    one, many = (torch.load(flagged_runs / f"weights-{name}.pt") for name in (alone, layout))
    assert one.keys() == many.keys()
    differing = total = 0
    for name, weight in one.items():
        difference = (weight.float() - many[name].float()).abs()
        step = FP16_STEP * 2.0 ** weight.float().abs().clamp_min(2.0**-14).log2().floor()
        assert float((difference / step).max()) <= 2, name
        differing += int((difference > 0).sum())
        total += weight.numel()
    assert differing / total < 0.01


def test_what_leaves_is_the_fp32_weights_rounded_once(flagged: Results) -> None:
    for rank in flagged("masters"):
        assert rank["apart"] > 1000, "training has left the FP32 weights equal to their FP16 copies: nothing is shown"
        assert rank["wrong"] == 0
        assert rank["sent"] == ["torch.float16"]


@pytest.mark.parametrize("layout", ["1", "tp2", "dp2", "moe-ep2"])
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(flagged: Results, layout: str) -> None:
    for rank in flagged(f"flag-resumed-{layout}"):
        assert rank["loaded"] == rank["saved"]
        assert rank["saved"]["counts"]["skipped"] >= 1
        for on, again in zip(rank["uninterrupted"], rank["resumed"], strict=True):
            for update in (on, again):  # of the last sixteen updates, which are not saved
                for name in ("grad_underflow_share", "grad_headroom_bits/min"):
                    update["metrics"].pop(name, None)
            assert again == on


def test_a_checkpoint_of_two_ranks_goes_on_with_one(flagged: Results) -> None:
    (alone,), two = flagged("loaded-by-one"), flagged("saved-by-two")
    assert alone["scaler"] == two[0]["scaler"], "scale, trackers, counts and history after the same updates"
    for mine, theirs in zip(alone["updates"], two[0]["updates"], strict=True):
        assert mine["scales"] == theirs["scales"]
        assert mine["changed"] == theirs["changed"]
        ours, others = (update["metrics"].get("grad_norm") for update in (mine, theirs))
        assert ours == pytest.approx(others, rel=1e-3)


def test_a_critic_skips_and_recovers(flagged: Results) -> None:
    (rank,) = flagged("critic")
    assert [update["changed"] == [] for update in rank["updates"]] == [False, True, False]
    assert [update["scales"] for update in rank["updates"]] == [[65536.0], [32768.0], [32768.0]]
    assert rank["report"]["values"] == "float32"
    assert rank["report"]["compute"] == "float16"


def test_too_many_skips_stop_every_rank_with_a_report(flagged: Results, flagged_runs: Path) -> None:
    """On two pipeline stages modules are named as in the whole model."""
    for rank in flagged("too-many-skips"):
        assert rank["done"] == 2
        assert rank["code"] == "training-diverged"
        assert "fp16_patch.loss_scaling.max_consecutive_skips=3" in rank["error"]
        assert not rank["changed"]
    report = json.loads((flagged_runs / "reports" / "overflow_report_actor.json").read_text())
    names = [row["module"] for row in report["modules"]]
    layers = {name.rpartition("layers.")[2].partition(".")[0] for name in names if "layers." in name}
    assert layers == {"0", "1", "2", "3"}, "those of both stages, by their numbers in the whole model"


def test_a_traced_update_is_the_update_it_would_have_been(flagged: Results, flagged_runs: Path) -> None:
    assert flagged("traced") == flagged("not-traced")
    assert (flagged_runs / "reports" / "trace_of_update_2_actor.txt").exists()


@LAYOUT
def test_the_report_reads_live_objects(flagged: Results, layout: str) -> None:
    for number, rank in enumerate(ranks := flagged(f"skip-{layout}")):
        rows = rank["report"]
        assert rows["compute"] == "float16"
        for row in ("master_weights", "gradient_reduction", "gradient_accumulation", "optimizer_state", "gradients"):
            assert rows[row] == "float32", row
        assert rows["loss_scale"] == "32768"
        assert rows["optimizer"] == "torch.AdamW in DistributedOptimizer"
        assert rows.get("router") == ("float32" if layout.startswith("moe") else None)
        if "pp2" not in layout or number == len(ranks) - 1:
            assert rows["log_probs"] == "float32"
