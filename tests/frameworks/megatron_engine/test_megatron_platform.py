# SPDX-License-Identifier: Apache-2.0
"""verl's own MegatronEngine, through megatron-bridge, on a CPU and without the flag, in BF16 and FP16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

Results = Callable[[str], list[dict[str, Any]]]
LAYOUT = pytest.mark.parametrize("layout", ["1", "tp2", "pp2", "dp2", "moe-1", "moe-ep2"])
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def worst_log_prob(ranks: list[dict[str, Any]]) -> float:
    return max(rank["log prob error"] for rank in ranks if rank["log prob error"] is not None)


def norms(ranks: list[dict[str, Any]]) -> list[float]:
    """The gradient norm of each update, from the ranks that have it."""
    found = [[update["norm"] for update in rank["updates"]] for rank in ranks]
    return next(each for each in reversed(found) if None not in each)


@LAYOUT
@DTYPE
def test_what_leaves_is_hugging_faces_model_rounded_once(results: Results, layout: str, dtype: str) -> None:
    for rank in results(f"{dtype}-{layout}"):
        assert rank["sent"] == {"missing": [], "unknown": [], "dtypes": [DTYPES[dtype]], "not rounded once": []}


@LAYOUT
def test_log_probs_are_those_of_transformers_in_fp32(results: Results, layout: str) -> None:
    exact, coarse = (worst_log_prob(results(f"{dtype}-{layout}")) for dtype in DTYPES)
    assert exact < 0.005
    assert exact < coarse / 5, "FP16 has three more bits"


@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"])
@DTYPE
def test_gradients_are_those_of_one_process(results: Results, layout: str, dtype: str) -> None:
    """Of the same eight sequences; the sums are rounded in another order, and the weights move with them."""
    bound = {"fp16": 1e-3, "bf16": 8e-3}[dtype]
    assert norms(results(f"{dtype}-{layout}")) == pytest.approx(norms(results(f"{dtype}-1")), rel=bound)


@DTYPE
def test_gradients_of_experts_in_parallel_are_those_of_one_process(results: Results, dtype: str) -> None:
    assert norms(results(f"{dtype}-moe-ep2")) == pytest.approx(norms(results(f"{dtype}-moe-1")), rel=1e-3)


@LAYOUT
def test_adam_counts_updates_and_the_scale_is_as_configured(results: Results, layout: str) -> None:
    for rank in results(f"fp16-{layout}"):
        assert [update["steps"] for update in rank["updates"]] == [[1.0], [2.0], [3.0]]
        scalers = 2 if layout == "moe-ep2" else 1
        assert [update["scales"] for update in rank["updates"]] == [[32768.0] * scalers] * 3


@LAYOUT
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(results: Results, layout: str) -> None:
    for rank in results(f"resumed-{layout}"):
        assert rank["loaded"] == rank["saved"], "weights or their FP32 copies are not those that were saved"
        assert rank["resumed"] == rank["uninterrupted"]
