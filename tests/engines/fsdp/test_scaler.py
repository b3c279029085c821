# SPDX-License-Identifier: Apache-2.0
"""The scaler against a model of it in plain Python, and against torch's own where they should agree."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from raising import raises_code
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.state_file import HISTORY
from fp16_patch.precision.loss_scaling import LIMITS

UNTIMED = hypothesis.settings(deadline=None)

OVERFLOW, GOOD = True, False
DEFAULTS = LossScaling()


@dataclass
class Reference:
    """Megatron's rule (DynamicGradScaler: overflows are taken off the hysteresis, growth gives it back), bounded."""

    settings: LossScaling
    scale: float = 0.0
    good_in_a_row: int = 0
    overflows_left: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    skips: list[int] = field(default_factory=list)
    history: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scale, self.overflows_left = self.settings.init_scale, self.settings.hysteresis
        self.counts = dict.fromkeys(
            ("updates", "skipped", "consecutive", "growths", "backoffs", "losses_not_finite"), 0
        )
        self.history = [[0, self.scale]]

    def update(self, overflow: bool) -> None:
        settings, before = self.settings, self.scale
        self.counts["updates"] += 1
        if overflow:
            self.counts["skipped"] += 1
            self.counts["consecutive"] += 1
            self.skips.append(self.counts["updates"])
            self.good_in_a_row = 0
            self.overflows_left -= 1
            if self.overflows_left <= 0:
                self.scale = max(self.scale * settings.backoff_factor, settings.min_scale)
        else:
            self.counts["consecutive"] = 0
            self.good_in_a_row += 1
            if self.good_in_a_row == settings.growth_interval:
                self.good_in_a_row, self.overflows_left = 0, settings.hysteresis
                self.scale = min(self.scale * settings.growth_factor, settings.max_scale)
        if self.scale != before:
            self.counts["growths" if self.scale > before else "backoffs"] += 1
            self.history = [*self.history, [self.counts["updates"], self.scale]][-HISTORY:]

    def state(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "growth_tracker": self.good_in_a_row,
            "hysteresis_left": max(self.overflows_left, 1),
            "counts": self.counts,
            "history": self.history,
            "settings": self.settings.as_dict(),
            "recent_skips": [n for n in self.skips if n > self.counts["updates"] - self.settings.skip_rate_window],
        }


@st.composite
def settings(draw: st.DrawFn, **fixed: Any) -> LossScaling:
    """Small intervals and close bounds, so that short sequences reach them."""
    low, start, high = sorted(draw(st.tuples(*[st.integers(-24, 31)] * 3)))
    chosen = {
        "init_scale": 2.0**start,
        "min_scale": 2.0**low,
        "max_scale": 2.0**high,
        "growth_factor": 2.0 ** draw(st.integers(1, 6)),
        "backoff_factor": 2.0 ** draw(st.integers(-6, -1)),
        "growth_interval": draw(st.integers(1, 6)),
        "hysteresis": draw(st.integers(1, 4)),
        "max_consecutive_skips": draw(st.integers(1, 30)),
        "skip_rate_window": draw(st.integers(1, 30)),
    }
    return LossScaling(**chosen | fixed)


UPDATES = st.lists(st.tuples(st.booleans(), st.integers(1, 8)), max_size=15).map(
    lambda runs: [overflow for overflow, length in runs for _ in range(length)]
)
"""Runs of overflows and of good updates."""


def update(scaler: FsdpLossScaler, overflow: bool) -> None:
    scaler.record(OPTIMIZER, finite=not overflow)
    scaler.update()


OPTIMIZER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def new_scaler(chosen: LossScaling = DEFAULTS) -> FsdpLossScaler:
    return FsdpLossScaler(chosen, device="cpu")


def through_json(scaler: FsdpLossScaler) -> Any:
    return json.loads(json.dumps(scaler.state_dict()))


def is_power_of_two(value: float) -> bool:
    return math.frexp(value)[0] == 0.5


@UNTIMED
@given(settings(), UPDATES)
def test_every_update_is_the_reference_s(chosen: LossScaling, overflows: list[bool]) -> None:
    scaler, reference = new_scaler(chosen), Reference(chosen)
    assert through_json(scaler) == reference.state()
    for overflow in overflows:
        update(scaler, overflow)
        reference.update(overflow)
        assert through_json(scaler) == reference.state()


@UNTIMED
@given(settings(), UPDATES)
def test_the_scale_stays_a_power_of_two_within_its_bounds(chosen: LossScaling, overflows: list[bool]) -> None:
    scaler = new_scaler(chosen)
    for overflow in overflows:
        update(scaler, overflow)
        scale = scaler.get_scale()
        assert is_power_of_two(scale)
        assert chosen.min_scale <= scale <= chosen.max_scale


@UNTIMED
@given(st.data(), settings(), UPDATES, st.booleans())
def test_a_scaler_goes_on_where_its_state_was_saved(
    data: st.DataObject, chosen: LossScaling, overflows: list[bool], used: bool
) -> None:
    """Also into a scaler that has lived already."""
    saved_after = data.draw(st.integers(0, len(overflows)))
    scaler, resumed = new_scaler(chosen), new_scaler(chosen)
    for overflow in overflows[:saved_after]:
        update(scaler, overflow)
    if used:
        update(resumed, OVERFLOW)
    resumed.load_state_dict(through_json(scaler))
    assert resumed.state_dict() == scaler.state_dict()
    for overflow in overflows[saved_after:]:
        update(scaler, overflow)
        update(resumed, overflow)
        assert resumed.state_dict() == scaler.state_dict()


@UNTIMED
@given(settings(hysteresis=1, min_scale=LIMITS[0], max_scale=LIMITS[1]), UPDATES)
def test_without_hysteresis_and_within_bounds_it_is_torch_s(chosen: LossScaling, overflows: list[bool]) -> None:
    names = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
    stock = ShardedGradScaler("cpu", **{name: getattr(chosen, name) for name in names})
    stock.scale(torch.ones(()))
    ours = new_scaler(chosen)
    for overflow in overflows:
        found = {torch.device("cpu"): torch.tensor([float(overflow)])}
        stock._per_optimizer_states[id(OPTIMIZER)]["found_inf_per_device"] = found
        stock.update()
        if not LIMITS[0] <= stock.get_scale() <= LIMITS[1]:
            return
        update(ours, overflow)
        assert ours.get_scale() == stock.get_scale()
        assert ours._get_growth_tracker() == stock._get_growth_tracker()


def test_it_is_torch_s_scaler_to_every_caller() -> None:
    scaler = new_scaler()
    assert isinstance(scaler, ShardedGradScaler)
    assert scaler.is_enabled()
    assert scaler.scale(torch.tensor(3.0)) == 3 * 65536
    assert scaler.get_growth_factor() == 2.0
    assert scaler.get_backoff_factor() == 0.5
    assert scaler.get_growth_interval() == 400


def test_the_history_keeps_the_latest_changes() -> None:
    scaler = new_scaler(LossScaling(growth_interval=1))
    for number in range(2 * HISTORY):
        update(scaler, OVERFLOW if number % 2 else GOOD)
    assert len(scaler.history) == HISTORY
    assert scaler.history[-1] == (2 * HISTORY, scaler.get_scale())
    assert scaler.counts.growths == scaler.counts.backoffs == HISTORY
    resumed = new_scaler(scaler.settings)
    resumed.load_state_dict(through_json(scaler))
    update(resumed, GOOD)
    assert len(resumed.history) == HISTORY
    assert resumed.history[-1] == (2 * HISTORY + 1, resumed.get_scale())


def test_a_ceiling_does_not_take_hysteresis_away() -> None:
    """An interval without overflow gives it back, whether the scale could grow or not."""
    scaler = new_scaler(LossScaling(growth_interval=2, hysteresis=2, max_scale=65536.0))
    for overflow in (OVERFLOW, GOOD, GOOD):
        update(scaler, overflow)
    assert scaler.rule.hysteresis_left == 2
    update(scaler, OVERFLOW)
    assert scaler.get_scale() == 65536.0


# Restoring under other settings: this run's settings win.

OTHERS = settings()


@UNTIMED
@given(settings(), OTHERS, UPDATES, UPDATES)
def test_this_run_s_settings_win_over_the_saved_ones(
    old: LossScaling, new: LossScaling, before: list[bool], after: list[bool]
) -> None:
    first = new_scaler(old)
    for overflow in before:
        update(first, overflow)
    second = new_scaler(new)
    second.load_state_dict(through_json(first))
    if new.init_scale != old.init_scale:
        expected = new.init_scale
    else:
        expected = min(max(first.get_scale(), new.min_scale), new.max_scale)
    assert second.get_scale() == expected
    assert second.counts == first.counts
    assert second.history[-1][1] == expected
    assert 1 <= second.rule.hysteresis_left <= new.hysteresis
    assert second._get_growth_tracker() < new.growth_interval
    for overflow in after:
        update(second, overflow)
        assert new.min_scale <= second.get_scale() <= new.max_scale
    assert second.counts.updates == len(before) + len(after)
    assert second.counts.skipped == sum(before) + sum(after)
    assert second.state_dict()["settings"] == new.as_dict()


def test_another_growth_interval_takes_effect_at_once() -> None:
    first = new_scaler(LossScaling(growth_interval=100))
    for _ in range(50):
        update(first, GOOD)
    second = new_scaler(LossScaling(growth_interval=10))
    second.load_state_dict(first.state_dict())
    update(second, GOOD)
    assert second.get_scale() == 2 * 65536.0, "50 good updates in a row are more than 10"


def test_another_growth_interval_keeps_the_good_updates_so_far() -> None:
    first = new_scaler(LossScaling(growth_interval=100))
    for _ in range(50):
        update(first, GOOD)
    second = new_scaler(LossScaling(growth_interval=60))
    second.load_state_dict(first.state_dict())
    for _ in range(10):
        assert second.get_scale() == 65536.0
        update(second, GOOD)
    assert second.get_scale() == 2 * 65536.0


def test_a_state_that_no_scaler_wrote_changes_nothing() -> None:
    scaler = new_scaler()
    update(scaler, OVERFLOW)
    good = through_json(scaler)
    for key in good:
        for wrong in (None, "1", -1, math.nan, {}):
            with raises_code("scaler-state-unusable"):
                scaler.load_state_dict({**good, key: wrong})
            assert through_json(scaler) == good


def test_a_state_of_torch_s_scaler_is_refused() -> None:
    with raises_code("scaler-state-unusable"):
        new_scaler().load_state_dict(ShardedGradScaler("cpu").state_dict())


# Misuse.


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
def test_a_scaler_that_torch_turned_off_is_refused() -> None:
    """Stock: a warning, and gradients that are never scaled."""
    assert not ShardedGradScaler("cuda").is_enabled()
    with raises_code("device-not-supported", "'cuda'"):
        FsdpLossScaler(DEFAULTS, device="cuda")


def test_an_update_without_a_check_is_refused_and_not_counted() -> None:
    scaler = new_scaler()
    scaler.scale(torch.ones(()))
    before = through_json(scaler)
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.update()
    assert through_json(scaler) == before


def test_a_check_after_unscaling_is_refused() -> None:
    """The gradients are already divided by the scale; clip_and_step would divide them again."""
    scaler = new_scaler()
    scaler.ensure_scale()
    scaler._per_optimizer_states[id(OPTIMIZER)]["stage"] = torch.amp.grad_scaler.OptState.UNSCALED
    with raises_code("gradients-unscaled-twice"):
        scaler.record(OPTIMIZER, finite=True)


@pytest.mark.parametrize(("wanted", "got"), [(0.0, 1.0), (0.5, 1.0), (8.0, 8.0), (math.inf, 2.0**31)])
def test_a_scale_set_through_torch_s_interface_is_bounded(wanted: float, got: float) -> None:
    for new_scale in (wanted, torch.tensor(wanted)):
        scaler = new_scaler()
        scaler.ensure_scale()
        scaler.update(new_scale)
        assert scaler.get_scale() == got
        assert scaler.history[-1] == (0, got)
        assert scaler.counts.updates == 0


def test_a_scale_of_nan_is_refused() -> None:
    scaler = new_scaler()
    scaler.ensure_scale()
    before = through_json(scaler)
    with raises_code("loss-scale-unusable", "nan"):
        scaler.update(math.nan)
    assert through_json(scaler) == before


# torch's own sequence, on the one rank of a process group.


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def weight(**kind: Any) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    parameter = torch.nn.Parameter(torch.ones(4))
    return parameter, torch.optim.AdamW([parameter], lr=0.1, **kind)


def torch_s_sequence(
    scaler: ShardedGradScaler,
    parameter: torch.nn.Parameter,
    optimizer: torch.optim.Optimizer,
    factor: float,
    unscale: bool = True,
) -> None:
    optimizer.zero_grad()
    scaler.scale((parameter * factor).sum()).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


BAD_UPDATES = 200
KINDS = pytest.mark.parametrize(
    "kind", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=lambda k: "".join(k)
)


@pytest.mark.usefixtures("one_rank")
def test_200_bad_updates_end_stock_training() -> None:
    """The scale reaches 0.0, its inverse is infinite, and the optimizer steps on NaN with nothing found."""
    parameter, optimizer = weight()
    stock = ShardedGradScaler("cpu")
    for _ in range(BAD_UPDATES):
        torch_s_sequence(stock, parameter, optimizer, math.nan)
    assert stock.get_scale() == 0.0
    assert parameter.isfinite().all()
    torch_s_sequence(stock, parameter, optimizer, 1.0)
    assert parameter.isnan().all(), "torch no longer steps on NaN: say so in scaler.py"


@KINDS
@pytest.mark.usefixtures("one_rank")
def test_200_bad_updates_end_at_the_floor(kind: dict[str, Any]) -> None:
    parameter, optimizer = weight(**kind)
    scaler = new_scaler()
    for _ in range(BAD_UPDATES):
        torch_s_sequence(scaler, parameter, optimizer, math.nan)
    assert torch.equal(parameter, torch.ones(4))
    assert scaler.get_scale() == scaler.settings.min_scale
    assert scaler.counts.skipped == scaler.counts.consecutive == BAD_UPDATES
    torch_s_sequence(scaler, parameter, optimizer, 1.0)
    assert torch.allclose(parameter, torch.full((4,), 0.899)), "AdamW's first step: 0.1, and 0.001 of weight decay"
    assert scaler.counts.consecutive == 0


@pytest.mark.usefixtures("one_rank")
def test_stock_breaks_on_a_fused_optimizer() -> None:
    """Why ``unscale_`` and ``step`` are ours: torch 2.13 changes the weights, and then fails."""
    parameter, optimizer = weight(fused=True)
    with pytest.raises(RuntimeError, match="broadcast"):
        torch_s_sequence(ShardedGradScaler("cpu"), parameter, optimizer, 1.0)
    assert not torch.equal(parameter, torch.ones(4)), "torch mends it: delete FsdpLossScaler.step"


BROKEN = pytest.mark.parametrize("scale", [0.0, math.inf, math.nan, -1.0, 2.0**-140, 2.0**40])


@BROKEN
@KINDS
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("unscale", [True, False], ids=["unscale_", "step"])
def test_a_scale_set_by_hand_to_what_cannot_be_divided_by_is_refused(
    scale: float, kind: dict[str, Any], unscale: bool
) -> None:
    """2**-140 is a number in FP32, and its inverse is not. Fused optimizers take the scale without ``unscale_``."""
    parameter, optimizer = weight(**kind)
    scaler = new_scaler()
    torch_s_sequence(scaler, parameter, optimizer, 1.0)
    before = parameter.detach().clone()
    scaler._scale.fill_(scale)
    with raises_code("loss-scale-unusable"):
        torch_s_sequence(scaler, parameter, optimizer, 1.0, unscale)
    assert torch.equal(parameter, before)


@pytest.mark.usefixtures("one_rank")
def test_a_rank_that_has_scaled_no_loss_can_unscale() -> None:
    """Stock raises an AssertionError there, and the other ranks wait for it."""
    _, optimizer = weight()
    scaler = new_scaler()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.counts.updates == 1
