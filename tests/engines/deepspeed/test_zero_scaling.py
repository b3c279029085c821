# SPDX-License-Identifier: Apache-2.0
"""Scaling on real ZeRO engines: what DeepSpeed does as it comes, and what the patches make of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(350),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

Outcomes = Callable[[str], list[dict[str, Any]]]
STAGES = pytest.mark.parametrize("stage", [2, 3])
ALL_STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
LAYOUTS = pytest.mark.parametrize(
    "layout", ["1", "2", "3", "2-offload", "3-offload", "2-clipped", "2-overlapped", "3-clipped"]
)


@LAYOUTS
def test_the_optimizer_sees_the_same_gradient_whatever_the_scale_does(results: Outcomes, layout: str) -> None:
    first, second = results(f"growth-{layout}")
    assert first["scales"] == second["scales"] == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    for rank in (first, second):
        assert rank["seen"] == pytest.approx([rank["seen"][0]] * 8), (
            "a step at which the scale grew saw another gradient"
        )
        assert rank["norms"] == pytest.approx([rank["norms"][0]] * 8)
        assert [update["loss_scale"] for update in rank["updates"]] == rank["scales"]
        assert [update["grad_norm"] for update in rank["updates"]] == rank["norms"]


@pytest.mark.parametrize("layout", ["1", "2", "3", "2-offload", "3-offload", "2-overlapped"])
def test_stock_sees_half_of_it_where_the_scale_grows(results: Outcomes, layout: str) -> None:
    (found, _) = results(f"stock-growth-{layout}")
    grew = [after > before for before, after in zip(found["scales"], [*found["scales"][1:], 2048], strict=True)]
    assert sum(grew) == 3
    true = found["norms"][0]
    halved = [grew for grew, seen in zip(grew, found["seen"], strict=True) if seen == pytest.approx(true / 2)]
    assert halved == [True] * 3, "DeepSpeed has been repaired: the patch deepspeed-step can go"


def test_without_clipping_the_norm_is_that_of_the_gradient_seen(results: Outcomes) -> None:
    for layout in ("1", "2", "3", "2-offload", "3-offload"):
        (found, _) = results(f"growth-{layout}")
        assert found["norms"] == pytest.approx(found["seen"])


def test_stock_zero_3_reports_half_the_norm_too(results: Outcomes) -> None:
    (found, _) = results("stock-growth-3")
    assert found["norms"] == pytest.approx(found["seen"])
    assert min(found["norms"]) == pytest.approx(max(found["norms"]) / 2)


def test_clipping_is_to_the_norm_asked_for(results: Outcomes) -> None:
    for stage in (2, 3):
        assert results(f"growth-{stage}-clipped")[0]["seen"] == pytest.approx([0.5] * 8, rel=1e-4)


@STAGES
def test_small_micro_batches_are_not_lost_beside_a_large_one(results: Outcomes, stage: int) -> None:
    (found, _) = results(f"sums-{stage}")
    assert found["seen"] == pytest.approx(found["exact"], rel=5e-4)


def test_stock_loses_them_and_zero_2_whatever_it_was_told(results: Outcomes) -> None:
    for name in ("stock-sums-2", "stock-sums-3", "stock-sums-2-fp32"):
        (found, _) = results(name)
        assert found["seen"] == pytest.approx(found["large"], rel=5e-4), f"{name}: the patch of the sums can go"
    (found, _) = results("stock-sums-3-fp32")
    assert found["seen"] == pytest.approx(found["exact"], rel=5e-4)


def test_stock_zero_1_averages_no_fp32_sums_over_ranks(results: Outcomes) -> None:
    """Why it is refused."""
    (right, _), (wrong, _) = results("stock-unreduced-fp16"), results("stock-unreduced-fp32")
    assert wrong["seen"] != pytest.approx(right["seen"], rel=1e-3), "DeepSpeed has been repaired: the refusal can go"


@pytest.mark.parametrize("layout", ["1", "2", "3", "2-offload", "3-offload"])
def test_one_bad_rank_is_a_skip_on_all_that_says_so(results: Outcomes, layout: str) -> None:
    ranks = results(f"skip-{layout}")
    for rank in ranks:
        before, skipped, after = rank["updates"]
        assert skipped["changed"] == [], "weights or the LR schedule moved on a skipped update"
        assert skipped["scales"] == [256, 128]
        assert skipped["norm"] is skipped["update"]["grad_norm"] is None
        assert skipped["update"]["skipped"]
        assert skipped["update"]["loss_scale"] == 256
        assert skipped["metrics"] == {
            "loss_scale": 256,
            "update_skipped": 1,
            "updates_skipped_total/max": 1,
            "updates_skipped_in_a_row/max": 1,
            "loss_scale_growths_total/max": 0,
            "loss_not_finite": 0,
            "losses_not_finite_total/max": 0,
        }
        for made in (before, after):
            assert made["changed"] == ["weights", "lr"]
            assert not made["update"]["skipped"]
            assert made["norm"] == made["update"]["grad_norm"] > 0
        assert after["metrics"]["updates_skipped_in_a_row/max"] == 0
    assert ranks[0] == ranks[1]


@ALL_STAGES
def test_stock_keeps_the_scale_at_first_and_the_norm_of_the_step_before(results: Outcomes, stage: int) -> None:
    (found, _) = results(f"stock-skip-{stage}")
    before, skipped, _ = found["updates"]
    assert skipped["changed"] == []
    assert skipped["scales"] == [256, 256]
    assert skipped["norm"] == before["norm"]


@STAGES
def test_headroom_and_underflow_are_those_of_the_gradients(results: Outcomes, stage: int) -> None:
    for rank in results(f"health-{stage}"):
        assert rank["headroom"] == pytest.approx(math.log2(65504 / (256 * rank["peak"])))
        assert rank["share"] == 0
        assert rank["nonzero"] == rank["parameters"]
    for rank in results(f"health-small-{stage}"):
        assert 0.1 < rank["share"] < 1
        expected = pytest.approx(1 - rank["nonzero"] / rank["parameters"])
        assert rank["share"] == expected, "the filling of partitions counts?"


@STAGES
def test_an_engine_follows_the_rule_to_the_letter(results: Outcomes, stage: int) -> None:
    for rank in results(f"sequence-{stage}"):
        assert rank["scales"] == rank["expected"]
        assert rank["state"] == rank["rule"]
        assert len(set(rank["scales"])) > 3


def test_only_boundaries_are_updates(results: Outcomes) -> None:
    for rank in results("accumulated"):
        assert rank == {"made": [False, True, False, True], "updates": 2}


# The end of a run.


@ALL_STAGES
def test_a_bad_loss_of_one_rank_skips_on_all_and_leaves_the_scale(results: Outcomes, stage: int) -> None:
    for rank in results(f"bad-loss-{stage}"):
        good, bad, overflow, after = rank["updates"]
        assert good == {"changed": ["weights", "lr"], "scale": 256, "bad": False}
        assert bad == {"changed": [], "scale": 256, "bad": True}
        assert overflow == {"changed": [], "scale": 128, "bad": False}
        assert after == {"changed": ["weights", "lr"], "scale": 128, "bad": False}
        assert (rank["counts"]["skipped"], rank["counts"]["losses_not_finite"]) == (2, 1)


@pytest.mark.parametrize(
    ("layout", "optimizer"),
    [
        ("0", "FP16_UnfusedOptimizer"),
        ("0-fused", "FP16_Optimizer"),
        ("1", "DeepSpeedZeroOptimizer"),
        ("1-fp32-sums", "BF16_Optimizer"),
        ("2", "DeepSpeedZeroOptimizer"),
        ("3", "DeepSpeedZeroOptimizer_Stage3"),
    ],
)
def test_a_bad_loss_of_one_rank_skips_on_all_in_bf16_too(results: Outcomes, layout: str, optimizer: str) -> None:
    for rank in results(f"bad-loss-bf16-{layout}"):
        assert rank["optimizer"] == optimizer
        assert [norm is None for norm in rank["norms"]] == [False, True, False], "not that of the update before"
        assert [update["changed"] for update in rank["updates"]] == [["weights", "lr"], [], ["weights", "lr"]]
        assert [update["bad"] for update in rank["updates"]] == [False, True, False]
        assert (rank["counts"]["updates"], rank["counts"]["losses_not_finite"]) == (3, 1)


@STAGES
def test_too_many_skips_end_the_run_with_a_diagnosis(results: Outcomes, stage: int) -> None:
    ranks = results(f"too-many-{stage}")
    assert ranks[0] == ranks[1]
    found = ranks[0]
    assert found["code"] == "training-diverged"
    assert found["done"] == 3
    assert found["scale"] == 1, "the floor"
    assert not found["changed"]
    assert "critic" in found["error"]
    assert "max_consecutive_skips=4" in found["error"]


def test_without_a_batch_it_ends_with_the_scales(results: Outcomes) -> None:
    (found, _) = results("too-many-not-kept")
    assert (found["code"], found["done"]) == ("training-diverged", 3)
    assert re.search(r"4 -> 2 after \d -> 1 after \d", found["error"])


def test_stock_ends_at_the_floor_without_a_reason(results: Outcomes) -> None:
    (found, _) = results("stock-too-many-2")
    assert (found["code"], found["done"]) == (None, 2)
    assert found["error"] == "Current loss scale already at minimum - cannot decrease scale anymore. Exiting run."


@pytest.mark.parametrize("case", ["too-many-large", "too-many-large-3"])
def test_an_overflow_is_found_where_it_begins(results: Outcomes, zero_run: Path, case: str) -> None:
    for rank in results(case):
        assert rank["code"] == "training-diverged"
        assert ": second\n" in rank["error"]
        assert "init_scale=8192" in rank["error"]
        assert "train in BF16: --x bf16" in rank["error"]
    assert (zero_run / "reports" / "overflow_report_critic.txt").exists()


@STAGES
def test_a_weight_that_is_nan_already_is_named(results: Outcomes, stage: int) -> None:
    for rank in results(f"spoilt-weight-{stage}"):
        assert rank["code"] == "training-diverged"
        assert ": second\n" in rank["error"]


@STAGES
def test_a_traced_update_is_the_one_it_would_have_been(results: Outcomes, stage: int) -> None:
    for traced, plain in zip(results(f"traced-{stage}"), results(f"untraced-{stage}"), strict=True):
        assert traced["done"] == [False, False, False, True, False, False]
        assert traced["norms"] == plain["norms"]
        assert traced["weights"] == plain["weights"]
        assert list(traced["reports"]) == ["trace_of_update_2_actor.json"]
        assert plain["reports"] == {}


def test_the_ceiling_holds(results: Outcomes) -> None:
    assert results("ceiling")[0]["scales"] == [512, *[1024] * 11]
    assert max(results("stock-ceiling")[0]["scales"]) > 2**18


# Not changed, refused, configured.


@pytest.mark.parametrize("case", ["bf16", "bf16-under-fp16"])
def test_bf16_engines_keep_deepspeeds_scaler(results: Outcomes, case: str) -> None:
    (found,) = results(case)
    assert found == {"scaler": "deepspeed.runtime.fp16.loss_scaler.LossScaler", "update": None}


def test_a_reference_has_no_scaler(results: Outcomes) -> None:
    assert results("reference") == [{"finite": True, "scaler": None}]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("stage-0", "zero_optimization.stage=0"),
        ("static", "fp16.loss_scale=128"),
        ("fp16-sums", "data_types.grad_accum_dtype=fp16"),
        ("stage-1-fp32-sums", "zero_optimization.stage=1"),
        ("offloaded-sums", "offload_optimizer"),
        ("loco", "zeropp_loco_param"),
    ],
)
def test_what_cannot_be_kept_is_refused(results: Outcomes, case: str, said: str) -> None:
    for rank in results(f"refused-{case}"):
        assert rank["code"] == "setting-refused"
        assert said in rank["error"]


def test_all_of_it_at_once(results: Outcomes) -> None:
    (found,) = results("refused-several")
    assert found["codes"] == ["setting-refused"] * 3


def test_deepspeed_reads_our_settings_in_its_own_block(results: Outcomes) -> None:
    (found,) = results("block")
    assert found["made"] == {
        "init_scale": 64,
        "scale_window": 3,
        "delayed_shift": 2,
        "consecutive_hysteresis": False,
        "min_scale": 16,
    }
    assert math.log2(found["made"]["init_scale"]) == found["read"]["initial_scale_power"]
