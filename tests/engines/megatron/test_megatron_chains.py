# SPDX-License-Identifier: Apache-2.0
"""Optimizers in several parts: Megatron's scales drift apart, ours is one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]

Outcomes = Callable[[str], list[dict[str, Any]]]
CHAINS = pytest.mark.parametrize("chain", ["ep2", "ep2-replicated", "apart"])


@CHAINS
def test_stock_makes_gradients_four_times_too_large(results: Outcomes, chain: str) -> None:
    """After three overflows in one part only; weights stand still, so every good update has the same gradient."""
    for rank in results(f"stock-drift-{chain}"):
        (first, before), (second, after) = rank["norms"]
        assert rank["scales"][-1] == [4096, 1024]
        assert second == pytest.approx(first)
        assert after / before == pytest.approx(4, rel=1e-3), "one scale in Megatron: ChainedLossScaler can go"


@CHAINS
def test_with_one_scale_they_stay_as_they_are(results: Outcomes, chain: str) -> None:
    for rank in results(f"drift-{chain}"):
        assert rank["scales"] == [[4096] * 2, [4096] * 2, [2048] * 2, [1024] * 2, [1024] * 2]
        assert rank["norms"][1] == pytest.approx(rank["norms"][0], rel=1e-3)


def test_any_sequence_of_overflows_in_two_parts_follows_the_reference(results: Outcomes) -> None:
    (found,) = results("any-sequence")
    assert found["examples"] >= 100
