# SPDX-License-Identifier: Apache-2.0
"""The scaler in DeepSpeed's place against the one in torch's, and what becomes of it in a checkpoint."""

from __future__ import annotations

import os
import pickle
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fp16_patch.engines.deepspeed.config import fp16_block, with_fp16
from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.loss_scaling import LossScaling

os.environ.setdefault("DS_ACCELERATOR", "cpu")
loss_scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler", reason="deepspeed is not installed")

from fp16_patch.engines.deepspeed.scaler import DeepSpeedLossScaler, is_resumable  # noqa: E402

UNTIMED = hypothesis.settings(deadline=None)
POWERS = st.integers(-4, 20).map(lambda power: 2.0**power)
OVERFLOWS = st.lists(st.booleans(), max_size=40)


@st.composite
def settings(draw: Any) -> LossScaling:
    low, init, high = sorted(draw(st.lists(POWERS, min_size=3, max_size=3)))
    return LossScaling(
        init_scale=init,
        growth_factor=draw(st.sampled_from([2.0, 4.0])),
        backoff_factor=draw(st.sampled_from([0.5, 0.25])),
        growth_interval=draw(st.integers(1, 5)),
        hysteresis=draw(st.integers(1, 3)),
        min_scale=low,
        max_scale=high,
    )


def torch_s(chosen: LossScaling) -> FsdpLossScaler:
    return FsdpLossScaler(chosen, "cpu")


OPTIMIZER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def both_update(ours: DeepSpeedLossScaler, other: FsdpLossScaler, overflow: bool) -> None:
    with ours.defer_scale_update():
        before = ours.loss_scale
        ours.update_scale(overflow)
        assert ours.loss_scale == before, "the scale moved in the middle of a step"
    other.record(OPTIMIZER, finite=not overflow)
    other.update()


@UNTIMED
@given(settings(), OVERFLOWS)
def test_every_setting_means_what_it_means_on_fsdp(chosen: LossScaling, overflows: list[bool]) -> None:
    ours, other = DeepSpeedLossScaler(chosen), torch_s(chosen)
    for overflow in overflows:
        both_update(ours, other, overflow)
        assert ours.cur_scale == ours.loss_scale == ours.get_scale() == other.get_scale()
        assert ours.state_dict() == other.state_dict()


@UNTIMED
@given(settings(), settings(), OVERFLOWS, OVERFLOWS)
def test_a_state_goes_from_one_to_the_other(
    old: LossScaling, new: LossScaling, before: list[bool], after: list[bool]
) -> None:
    first, resumed, other = DeepSpeedLossScaler(old), DeepSpeedLossScaler(new), torch_s(new)
    for overflow in before:
        first.update_scale(overflow)
    resumed.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    for overflow in after:
        both_update(resumed, other, overflow)
        assert resumed.state_dict() == other.state_dict()


@UNTIMED
@given(settings(), OVERFLOWS)
def test_in_a_pickle_it_is_deepspeeds_own(chosen: LossScaling, overflows: list[bool]) -> None:
    ours = DeepSpeedLossScaler(chosen)
    for overflow in overflows:
        ours.update_scale(overflow)
    text = pickle.dumps(ours)
    assert type(ours).__module__.startswith("fp16_patch.")
    assert b"DynamicLossScaler" in text
    assert b"fp16_patch" not in text
    stock = pickle.loads(text)
    assert type(stock) is loss_scaler.DynamicLossScaler
    assert stock.loss_scale == ours.loss_scale
    assert is_resumable(stock)
    back = DeepSpeedLossScaler(chosen)
    back.load_stock_scaler(stock, skipped=ours.counts.skipped)
    for name in ("scale", "growth_tracker", "hysteresis_left"):
        assert getattr(back.rule, name) == getattr(ours.rule, name)
    assert (back.counts.updates, back.counts.skipped) == (ours.counts.updates, ours.counts.skipped)


def test_an_unpickled_one_goes_on_counting() -> None:
    """DeepSpeed counts one update more to an interval, from an overflow on."""
    ours = DeepSpeedLossScaler(LossScaling(init_scale=256.0, growth_interval=4))
    for overflow in (True, False, False):
        ours.update_scale(overflow)
    stock = pickle.loads(pickle.dumps(ours))
    scales = []
    for _ in range(4):
        stock.update_scale(False)
        scales.append(stock.loss_scale)
    assert scales == [128, 128, 256, 256]


def test_a_step_that_fails_lets_the_scale_go() -> None:
    ours = DeepSpeedLossScaler(LossScaling(growth_interval=1))

    def step() -> None:
        with ours.defer_scale_update():
            ours.update_scale(False)
            raise MemoryError

    with pytest.raises(MemoryError):
        step()
    assert ours.loss_scale == 2 * 65536
    ours.update_scale(True)
    assert ours.loss_scale == 65536, "it moves at once outside a step"


def test_a_step_without_a_check_is_no_update() -> None:
    ours = DeepSpeedLossScaler(LossScaling(growth_interval=1))
    with ours.defer_scale_update():
        pass
    assert ours.counts.updates == 0


def test_deepspeed_may_set_the_scale_within_bounds() -> None:
    ours = DeepSpeedLossScaler(LossScaling(max_scale=2.0**17))
    ours.cur_scale = 2.0**20
    assert ours.loss_scale == 2.0**17
    assert list(ours.history) == [(0, 65536.0), (0, 2.0**17)]


def test_a_loss_is_multiplied_once() -> None:
    ours = DeepSpeedLossScaler(LossScaling(init_scale=8.0))
    assert ours.scale_loss(torch.tensor(3.0)) == 24
    weight = torch.nn.Parameter(torch.tensor(2.0))
    ours.backward(weight * 3)
    assert weight.grad == 24


@pytest.mark.parametrize(
    ("field", "value"),
    [("cur_scale", 0.0), ("cur_scale", float("nan")), ("cur_scale", "1"), ("scale_window", 0), ("cur_iter", -1)],
)
def test_numbers_that_no_scaler_has_are_not_gone_on_from(field: str, value: object) -> None:
    stock = pickle.loads(pickle.dumps(DeepSpeedLossScaler(LossScaling())))
    assert is_resumable(stock)
    setattr(stock, field, value)
    assert not is_resumable(stock)


def test_a_static_one_neither() -> None:
    assert not is_resumable(loss_scaler.LossScaler(scale=128.0))


# The configuration.


@UNTIMED
@given(settings())
def test_deepspeed_accepts_every_block_and_reads_what_it_can_say(chosen: LossScaling) -> None:
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    read = DeepSpeedFP16Config(**fp16_block(chosen)).dynamic_loss_scale_args()
    assert read["init_scale"] == chosen.init_scale
    assert read["scale_window"] == chosen.growth_interval
    assert read["delayed_shift"] == chosen.hysteresis
    assert read["min_scale"] == max(chosen.min_scale, 1)


def test_sums_are_in_fp32_unless_the_user_says_otherwise() -> None:
    assert with_fp16({}, LossScaling())["data_types"] == {"grad_accum_dtype": "fp32"}
    given_types = {"data_types": {"grad_accum_dtype": None, "other": 1}, "fp16": {"auto_cast": True}, "x": 1}
    made = with_fp16(given_types, LossScaling())
    assert made["data_types"] == {"grad_accum_dtype": "fp32", "other": 1}
    assert made["fp16"]["auto_cast"]
    assert made["x"] == 1
    assert given_types["data_types"] == {"grad_accum_dtype": None, "other": 1}, "the caller's own stays as it was"
    kept = with_fp16({"data_types": {"grad_accum_dtype": "fp16"}}, LossScaling())
    assert kept["data_types"] == {"grad_accum_dtype": "fp16"}
