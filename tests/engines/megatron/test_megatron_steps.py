# SPDX-License-Identifier: Apache-2.0
"""Steps of real megatron-core optimizers, made and skipped, in every layout that a CPU has ranks for."""

from __future__ import annotations

import math
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
LAYOUTS = ("1", "1-replicated", "tp2", "pp2", "vpp2", "dp2", "ep2", "ep2-replicated")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_bad_rank_is_a_skip_on_all_that_says_so(results: Outcomes, layout: str) -> None:
    ranks = results(f"skip-{layout}")
    for rank in ranks:
        before, skipped, *after = rank["updates"]
        assert not skipped["moved"], "weights or the optimizer's state moved on a skipped update"
        assert skipped["update"] == {
            "skipped": True,
            "grad_norm": None,
            "loss_scale": 1024,
            "headroom_bits": None,
            "underflow_share": None,
            "loss_not_finite": False,
        }
        assert skipped["metrics"] == {
            "loss_scale": 1024,
            "update_skipped": 1,
            "updates_skipped_total/max": 1,
            "updates_skipped_in_a_row/max": 1,
            "loss_scale_growths_total/max": 0,
            "loss_not_finite": 0,
            "losses_not_finite_total/max": 0,
        }
        for made in (before, *after):
            assert made["moved"]
            assert made["update"]["grad_norm"] > 0
            assert not made["update"]["skipped"]
        for made in rank["updates"]:
            assert len(set(made["scales"])) == len(set(made["trackers"])) == 1, "parts of the optimizer disagree"
        assert [made["scales"][0] for made in rank["updates"]] == [1024, 512, 512, 1024, 1024]
        assert after[-1]["metrics"]["loss_scale_growths_total/max"] == 1
    assert [[made["update"], made["metrics"]] for rank in ranks for made in rank["updates"]] == [
        [made["update"], made["metrics"]] for _ in ranks for made in ranks[0]["updates"]
    ]
    parts = "DistributedOptimizer" if "replicated" not in layout else "Float16OptimizerWithFloat16Params"
    assert {rank["optimizer"] for rank in ranks} == {f"torch.AdamW in {parts}"}


@pytest.mark.parametrize("layout", ["dp2", "pp2", "ep2"])
def test_a_bad_loss_of_one_rank_skips_on_all_and_leaves_the_scale(results: Outcomes, layout: str) -> None:
    for rank in results(f"bad-loss-{layout}"):
        bad, overflow, good = rank["updates"]
        assert bad == [True, True, False, 1024]
        assert overflow == [True, False, False, 512]
        assert good == [False, False, True, 512]
        assert (rank["counts"]["skipped"], rank["counts"]["losses_not_finite"]) == (2, 1)


@pytest.mark.parametrize("layout", ["1-replicated", "tp2"])
def test_norms_are_those_of_one_process(results: Outcomes, layout: str) -> None:
    """The same batches; what differs is the order of sums in FP16, which moves a norm by some of its 11 bits."""
    (alone,), (spread, *_) = results("skip-1"), results(f"skip-{layout}")
    norms = [[made["update"]["grad_norm"] for made in run["updates"] if made["moved"]] for run in (alone, spread)]
    assert norms[1] == pytest.approx(norms[0], rel=2**-9)


def test_floor_and_ceiling_hold(results: Outcomes) -> None:
    (found,) = results("bounds")
    assert found["scales"] == [1024, 2048, 2048, 2048, 2048, 2048, 1024, 512, 256, 128, 64, 64]


def test_stock_has_no_ceiling(results: Outcomes) -> None:
    (found,) = results("stock-bounds")
    assert found["scales"][:6] == [512, 1024, 2048, 4096, 8192, 16384], "Megatron has bounded its scaler"


def test_the_norm_is_reported_whether_megatron_clips_or_not(results: Outcomes) -> None:
    """Stock says 0 for an optimizer that is not chained and does not clip."""
    (found,) = results("norms")
    assert len(found) == 4
    assert list(found.values()) == pytest.approx([found["chained-0"]] * 4)
    assert found["chained-0"] > 0


def test_headroom_and_underflow_are_those_of_the_gradients(results: Outcomes) -> None:
    (found,) = results("statistics")
    assert found["headroom"] == pytest.approx(math.log2(65504 / found["peak"]))
    assert found["share"] == pytest.approx(found["zeros"] / found["elements"])
    assert found["zeros_with_lookups"] > 100 * found["zeros"], "the case has no unused rows to leave out"


def test_a_loop_that_calls_step_itself_is_right_too(results: Outcomes) -> None:
    for rank in results("loop-ep2"):
        assert rank["made"]
        assert rank["scale"] == 2048
        assert rank["code"] == "optimizer-step-out-of-order"
        assert rank["then"] is False, "a step that ended in an exception is over"


def test_the_example_trains_and_says_its_scale(results: Outcomes, cases_run: Path, log: str) -> None:
    for rank in results("example"):
        assert rank["last"] < rank["first"]
        assert rank["skipped"] >= 1, "it starts at a scale that is too high, to show a skip"
    assert "update 1 skipped: loss scale" in log
