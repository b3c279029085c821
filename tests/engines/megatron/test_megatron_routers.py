# SPDX-License-Identifier: Apache-2.0
"""Experts in FP16: auxiliary losses get the loss scale, routers FP32."""

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


def test_gradients_of_auxiliary_losses_are_right_under_scaling(results: Outcomes) -> None:
    """Load balancing and z-loss, at a scale of 4096, two micro-batches; FP16 keeps 11 bits."""
    (found,) = results("auxiliary")
    assert found["share"] > 1, "the case has no auxiliary gradient to speak of"
    assert found["error"] < 2**-10


def test_they_are_lost_where_only_the_loss_is_scaled(results: Outcomes) -> None:
    """Why install_loss_scaler sets grad_scale_func: Megatron asks it, and takes 1 without it."""
    (found,) = results("auxiliary-unscaled")
    assert found["size"] == pytest.approx(1 / 4096, rel=1e-2)


def test_a_router_in_fp32_keeps_what_fp16_rounds_away(results: Outcomes) -> None:
    (kept,), (rounded,) = results("router-fp32"), results("router-None")
    assert kept["dtype"] == "torch.float32"
    assert rounded["dtype"] == "torch.float16"
    assert kept["error"] < rounded["error"] / 100
