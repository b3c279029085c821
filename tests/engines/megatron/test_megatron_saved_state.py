# SPDX-License-Identifier: Apache-2.0
"""What is read from the scaler's place in a Megatron checkpoint, and what is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from raising import raises_code

from fp16_patch.engines.megatron.checkpoint import checkpoint_entry, read_state
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.scale_rule import ScaleRule

SETTINGS = LossScaling(growth_interval=10, hysteresis=3, max_scale=2.0**20)


def stock(**changed: Any) -> dict[str, Any]:
    return {"scale": torch.tensor([1024.0]), "growth_tracker": 4, "hysteresis_tracker": 2} | changed


def ours() -> dict[str, Any]:
    rule = ScaleRule(SETTINGS)
    for skipped in (True, True, True, False):
        rule.update(skipped=skipped)
    trackers = {"growth_tracker": rule.growth_tracker, "hysteresis_tracker": rule.hysteresis_left}
    return stock(scale=torch.tensor([rule.scale]), **trackers) | checkpoint_entry(rule.state_dict())


def loaded(saved: Any) -> ScaleRule:
    rule = ScaleRule(SETTINGS)
    rule.load_state_dict(read_state(saved, SETTINGS))
    return rule


def test_ours_comes_back_whole() -> None:
    rule = loaded(ours())
    assert rule.scale == 2.0**15
    assert rule.counts.skipped == 3
    assert rule.history[-1] == (3, 2.0**15)


def test_megatron_s_goes_on_at_its_scale() -> None:
    rule = loaded(stock())
    assert (rule.scale, rule.growth_tracker, rule.hysteresis_left) == (1024, 4, 2)
    assert rule.counts.updates == 0


@pytest.mark.parametrize(
    ("changed", "scale", "left"),
    [
        ({"scale": torch.tensor([2.0**32])}, 2.0**20, 2),  # its default, above our ceiling
        ({"scale": torch.tensor(3000.0)}, 2048, 2),  # no power of two
        ({"hysteresis_tracker": -5}, 1024, 1),  # it counts on below 0
        ({"growth_tracker": 500}, 1024, 2),
    ],
)
def test_numbers_of_megatron_s_that_we_have_not(changed: dict[str, Any], scale: float, left: int) -> None:
    rule = loaded(stock(**changed))
    assert (rule.scale, rule.hysteresis_left) == (scale, left)
    assert rule.growth_tracker < SETTINGS.growth_interval


def test_a_static_scale_is_no_scale_to_go_on_from() -> None:
    assert read_state({}, SETTINGS) is None


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        (None, "None"),
        ([1024.0], "has "),
        ({"scale": 1.0}, "scale"),
        (stock(scale=torch.tensor([1.0, 2.0])), "is not a number"),
        (stock(scale="much"), "is not a number"),
        (stock(scale=math.nan), "scale"),
        (stock(scale=0.0), "scale"),
        (stock(scale=math.inf), "scale"),
        (stock(growth_tracker=1.5), "not whole numbers"),
        (stock(hysteresis_tracker=None), "not whole numbers"),
        (stock(fp16_patch="{"), "JSON"),
        (stock(fp16_patch=None), "JSON"),
        (stock(fp16_patch="{}"), "format"),
        (ours() | {"scale": torch.tensor([2.0])}, "scale"),
        (ours() | {"growth_tracker": 9}, "scale"),
        (ScaleRule(SETTINGS).state_dict(), "loss_scaler.json"),
    ],
)
def test_anything_else_is_one_error_that_says_why(saved: Any, why: str) -> None:
    with raises_code("scaler-state-unusable", why, "next step"):
        read_state(saved, SETTINGS)
