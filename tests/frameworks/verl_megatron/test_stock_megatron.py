# SPDX-License-Identifier: Apache-2.0
"""Test FP16 on verl's MegatronEngine without the flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(450)]

Results = Callable[[str], list[dict[str, Any]]]


@pytest.mark.parametrize("layout", ["1", "dp2"])
def test_the_first_overflow_ends_the_run(results: Results, layout: str) -> None:
    usual = results("fp16-1")[0]["updates"][0]["norm"]
    for rank in results(f"stock-overflow-{layout}"):
        assert rank["error"] == "Megatron optimizer step failed. This should not happen"
        assert not rank["changed"], "the update was skipped all the same"
        assert rank["scales"] == [16384.0], "and the scale halved"
        assert rank["norm after"] == pytest.approx(usual, rel=1e-3), "the next update would have been fine"


def test_overflows_of_the_experts_alone_multiply_their_gradients(results: Results) -> None:
    """The scales of the two optimizers drift apart, and the loss is multiplied by the first."""
    for rank in results("stock-drift"):
        before, after = rank["0"], rank["3"]
        assert before["scales"] == [32768.0, 32768.0]
        assert after["scales"] == [32768.0, 4096.0]
        (dense, experts), (dense_after, experts_after) = before["norms"], after["norms"]
        assert dense_after == dense
        assert experts_after / experts == pytest.approx(8, rel=1e-4)
