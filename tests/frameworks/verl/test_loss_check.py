# SPDX-License-Identifier: Apache-2.0
"""Losses of verl's engine that are not finite before they are scaled; see ``loss_cases.py``."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(450),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed"),
]

Outcomes = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("role", "strategy", "dtype"),
    [
        ("actor", "fsdp", "fp16"),
        ("actor", "fsdp2", "fp16"),
        ("critic", "fsdp2", "fp16"),
        ("actor", "fsdp2", "bf16"),
        ("critic", "fsdp", "fp32"),
    ],
)
def test_a_nan_in_one_rank_s_batch_skips_on_all(results: Outcomes, role: str, strategy: str, dtype: str) -> None:
    """One of two ranks, one of its two micro-batches. The scale does not move, and the input is named."""
    source = "advantages" if role == "actor" else "returns"
    for rank in results(f"bad-loss-{role}-{strategy}-{dtype}"):
        good, bad, after = rank["updates"]
        assert [update["changed"] for update in rank["updates"]] == [True, False, True]
        assert [update["scale"] for update in rank["updates"]] == [65536.0] * 3
        assert [update["found"] for update in rank["updates"]] == [None, [role, source], None]
        assert [update["metrics"]["loss_not_finite"] for update in rank["updates"]] == [[0.0], [1.0], [0.0]]
        assert after["metrics"]["losses_not_finite_total/max"] == [1.0]
        assert "grad_norm" not in bad["metrics"], "a skipped update has none"
        assert math.isfinite(good["metrics"]["grad_norm"])
        assert ("loss_scale" in good["metrics"]) == (dtype == "fp16")
