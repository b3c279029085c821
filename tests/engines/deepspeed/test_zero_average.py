# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF's moving average of FP16 weights: what stock makes of it, and the one kept in FP32."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(350),
    pytest.mark.skipif(find_spec("openrlhf") is None, reason="OpenRLHF is not installed"),
]

Outcomes = Callable[[str], list[dict[str, Any]]]
ROUNDING = 2.0**-13
"""Of FP16, for these weights, below 0.5: half of the distance between two numbers."""


@pytest.mark.parametrize("stage", [2, 3])
def test_the_average_is_exact_but_for_its_last_rounding(results: Outcomes, stage: int) -> None:
    for rank in results(f"average-{stage}"):
        assert rank["moved"] > 10 * ROUNDING, "too little has happened to tell"
        assert rank["error"] <= ROUNDING * 1.01
        assert rank["unmoved_by_a_skip"]


def test_stock_rounds_at_every_update(results: Outcomes) -> None:
    for rank in results("stock-average-2"):
        assert rank["error"] > 3 * ROUNDING, "OpenRLHF averages in FP32 now: openrlhf-average-in-fp32 can go"


def test_stock_never_moves_under_zero_3(results: Outcomes) -> None:
    for rank in results("stock-average-3"):
        assert rank["held_moved"] == 0, "OpenRLHF writes its gathered average back now"
