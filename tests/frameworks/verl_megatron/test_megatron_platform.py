# SPDX-License-Identifier: Apache-2.0
"""verl's own MegatronEngine, through megatron-bridge, on a CPU and without the flag, in BF16 and FP16."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(450)]

Results = Callable[[str], list[dict[str, Any]]]
IN_BF16_TOO = ["1", "tp2", "pp2", "dp2", "moe-1", "moe-ep2"]
LAYOUTS = [*IN_BF16_TOO, "vpp2", "tp2pp2"]
RUNS = [*(f"fp16-{layout}" for layout in LAYOUTS), *(f"bf16-{layout}" for layout in IN_BF16_TOO)]
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}


def log_prob_errors(ranks: list[dict[str, Any]]) -> list[float]:
    return sorted(error for rank in ranks for error in rank["log prob errors"])


def norms(ranks: list[dict[str, Any]]) -> list[float]:
    """Return the gradient norm of each update, from the ranks that have it."""
    found = [[update["norm"] for update in rank["updates"]] for rank in ranks]
    return next(each for each in reversed(found) if None not in each)


@pytest.mark.parametrize("run", RUNS)
def test_what_leaves_is_hugging_faces_model_rounded_once(results: Results, run: str) -> None:
    dtype = DTYPES[run[:4]]
    for rank in results(run):
        assert rank["sent"] == {"missing": [], "unknown": [], "dtypes": [dtype], "not rounded once": []}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_sent_to_the_next_stage_is_kept(results: Results, layout: str) -> None:
    """gloo reads it later. If it was freed, another value sometimes arrived on a busy machine."""
    assert not any(rank["frees what it sends"] for rank in results(f"fp16-{layout}"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_are_those_of_transformers_in_fp32(results: Results, layout: str) -> None:
    errors = log_prob_errors(results(f"fp16-{layout}"))
    assert statistics.median(errors) < 0.001
    if "moe" not in layout:  # where a router may choose another expert
        assert max(errors) < 0.005


@pytest.mark.parametrize("layout", IN_BF16_TOO)
def test_fp16_has_three_more_bits(results: Results, layout: str) -> None:
    fine, coarse = (statistics.median(log_prob_errors(results(f"{dtype}-{layout}"))) for dtype in DTYPES)
    assert fine < coarse / 5


@pytest.mark.parametrize("run", [run for run in RUNS if run[5:] not in ("1", "moe-1")])
def test_gradients_are_those_of_one_process(results: Results, run: str) -> None:
    """Of the same eight sequences; the sums are rounded in another order, and the weights move with them."""
    alone = f"{run[:4]}-{'moe-1' if 'moe' in run else '1'}"
    assert norms(results(run)) == pytest.approx(norms(results(alone)), rel={"fp16": 1e-3, "bf16": 8e-3}[run[:4]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adam_counts_updates_and_the_scale_is_as_configured(results: Results, layout: str) -> None:
    scalers = 2 if layout == "moe-ep2" else 1
    for rank in results(f"fp16-{layout}"):
        assert [update["steps"] for update in rank["updates"]] == [[1.0], [2.0], [3.0]]
        assert [update["scales"] for update in rank["updates"]] == [[32768.0] * scalers] * 3


@pytest.mark.parametrize("layout", ["1", "tp2", "pp2", "dp2", "moe-ep2"])
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(results: Results, layout: str) -> None:
    for rank in results(f"resumed-{layout}"):
        assert rank["loaded"] == rank["saved"], "weights or their FP32 copies are not those that were saved"
        assert rank["resumed"] == rank["uninterrupted"]


@pytest.mark.parametrize("layout", ["1", "tp2", "pp2", "dp2"])
def test_training_goes_on_in_another_layout(results: Results, layout: str) -> None:
    ranks = results(f"resharded-{layout}")
    assert norms(ranks) == pytest.approx(norms(results("to-be-resharded")), rel=1e-3)
    assert [update["steps"] for update in ranks[0]["updates"]] == [[4.0], [5.0], [6.0]]


def test_a_critic_trains(results: Results) -> None:
    (rank,) = results("critic")
    assert all(norm > 0 for norm in norms([rank]))
    assert [update["steps"] for update in rank["updates"]] == [[1.0], [2.0], [3.0]]
