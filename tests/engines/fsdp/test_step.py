# SPDX-License-Identifier: Apache-2.0
"""``clip_and_step`` against torch's own unscale_, clip_grad_norm_, step and update; and what a skip leaves alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises_code
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.utils import clip_grad_norm_

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.engines.fsdp.step import Update, clip_and_step
from fp16_patch.loss_scaling import LossScaling

UNTIMED = settings(deadline=None, max_examples=50)

DEFAULTS = LossScaling()
SCHEDULES = {"init_scale": 2.0**10, "growth_interval": 3}

Optimizer = torch.optim.Optimizer
FOREACH, SINGLE, FUSED = {"foreach": True}, {"foreach": False}, {"fused": True}
DECAY = {"weight_decay": 0.1}
MOMENTUM = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
AMSGRAD = {"amsgrad": True, "maximize": True}

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "AdamW-foreach": partial(torch.optim.AdamW, lr=0.1, **FOREACH, **DECAY),
    "AdamW-single": partial(torch.optim.AdamW, lr=0.1, **SINGLE, **DECAY),
    "AdamW-fused": partial(torch.optim.AdamW, lr=0.1, **FUSED, **DECAY),
    "AdamW-fused-amsgrad": partial(torch.optim.AdamW, lr=0.1, **FUSED, **AMSGRAD),
    "Adam-foreach": partial(torch.optim.Adam, lr=0.1, **FOREACH),
    "Adam-fused": partial(torch.optim.Adam, lr=0.1, **FUSED),
    "SGD-foreach": partial(torch.optim.SGD, lr=0.1, **FOREACH),
    "SGD-foreach-momentum": partial(torch.optim.SGD, lr=0.1, **FOREACH, **MOMENTUM),
    "SGD-single-momentum": partial(torch.optim.SGD, lr=0.1, **SINGLE, **MOMENTUM),
    "SGD-fused": partial(torch.optim.SGD, lr=0.1, **FUSED),
    "SGD-fused-momentum": partial(torch.optim.SGD, lr=0.1, **FUSED, **MOMENTUM),
    "Adagrad-fused": partial(torch.optim.Adagrad, lr=0.1, **FUSED),
    "RMSprop-foreach": partial(torch.optim.RMSprop, lr=0.1, **FOREACH),
}
EVERY_OPTIMIZER = pytest.mark.parametrize("optimizer", OPTIMIZERS)
FEW_OPTIMIZERS = pytest.mark.parametrize("optimizer", ["AdamW-foreach", "AdamW-fused", "SGD-fused-momentum"])
MAX_NORMS = {"inactive": 1e6, "active": 0.05, "zero": 0.0, "infinite": math.inf}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """ShardedGradScaler does not unscale without a process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@dataclass
class Training:
    """A small model in two parameter groups, with a parameter that never gets a gradient, and a schedule."""

    model: torch.nn.Sequential
    optimizer: Optimizer
    schedule: Any
    scaler: Any

    def backward(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        batch, target = (torch.randn(8, size, generator=generator) for size in (4, 1))
        self.scaler.scale((self.model(batch) - target).square().mean()).backward()

    def spoil(self, value: float, parameter: int = 0, element: int = 0) -> None:
        list(self.model.parameters())[parameter].grad.view(-1)[element] = value

    def everything(self) -> dict[str, Any]:
        """Copies of all that a step may change."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(state)


def new_training(optimizer: str, scaler: Any) -> Training:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    first, second = list(model[0].parameters()), list(model[2].parameters())
    unused = torch.nn.Parameter(torch.ones(3))
    built = OPTIMIZERS[optimizer]([{"params": [*first, unused]}, {"params": second, "lr": 0.01}])
    return Training(model, built, torch.optim.lr_scheduler.StepLR(built, 2, 0.5), scaler)


def stock_scaler(optimizer: str, **settings: Any) -> Any:
    """ShardedGradScaler where it works: it fails on a fused optimizer (test_scaler.py), the class below it does not."""
    return (torch.amp.GradScaler if "fused" in optimizer else ShardedGradScaler)("cpu", **settings)


def ours(optimizer: str, settings: LossScaling = DEFAULTS) -> Training:
    return new_training(optimizer, FsdpLossScaler(settings, "cpu"))


def assert_close(a: Any, b: Any, where: str = "") -> None:
    """Nested equality; tensors to FP32 rounding."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-7, msg=lambda text: f"{where}: {text}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_close(*pair, f"{where}/{index}")
    else:
        assert a == b, where


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested states are not bit for bit the same."""
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if a.dim() else a == b
        return [] if same else [where]
    if isinstance(a, dict):
        return [
            text
            for key in a.keys() | b.keys()
            for text in (differences(a[key], b[key], f"{where}/{key}") if key in a and key in b else [f"{where}/{key}"])
        ]
    return [] if a == b else [where]


@EVERY_OPTIMIZER
@pytest.mark.parametrize("clipping", MAX_NORMS)
def test_it_equals_torch_s_sequence(optimizer: str, clipping: str) -> None:
    """Eight updates, of which the second and the seventh overflow; between them the scale grows."""
    theirs = new_training(optimizer, stock_scaler(optimizer, **SCHEDULES))
    mine = ours(optimizer, LossScaling(**SCHEDULES))
    max_norm = MAX_NORMS[clipping]
    for number in range(8):
        for training in (theirs, mine):
            training.optimizer.zero_grad()
            training.backward(seed=number)
            if number in (1, 6):
                training.spoil(math.inf)
        theirs.scaler.unscale_(theirs.optimizer)
        norm = clip_grad_norm_(theirs.model.parameters(), max_norm)
        theirs.scaler.step(theirs.optimizer)
        theirs.scaler.update()

        update = clip_and_step(mine.scaler, mine.optimizer, max_norm)
        for training in (theirs, mine):
            training.schedule.step()

        assert update.skipped == (number in (1, 6))
        if not update.skipped:
            assert update.grad_norm == pytest.approx(float(norm), rel=1e-5)
        assert mine.scaler.get_scale() == theirs.scaler.get_scale()
        assert_close(mine.everything(), theirs.everything(), f"update {number}")


@FEW_OPTIMIZERS
def test_no_gradients_at_all(optimizer: str) -> None:
    """Before any backward, or on a rank that holds nothing: an update like any other."""
    training = ours(optimizer)
    before = training.everything()
    update = clip_and_step(training.scaler, training.optimizer, 1.0)
    assert (update.skipped, update.grad_norm) == (False, 0.0)
    assert differences(before, training.everything()) == []
    assert training.scaler.counts.updates == 1


@FEW_OPTIMIZERS
def test_what_an_update_says(optimizer: str) -> None:
    training = ours(optimizer)
    training.backward(seed=0)
    squares = sum(float(p.grad.double().square().sum()) for p in training.model.parameters())
    update = clip_and_step(training.scaler, training.optimizer, 1.0)
    assert update.statistics.norm == pytest.approx(math.sqrt(squares))
    assert update.grad_norm == update.statistics.norm / 65536
    assert (update.skipped, update.loss_scale) == (False, 65536.0)
    assert update.statistics.underflow_share == 0.0


def test_the_scale_an_update_reports_is_the_one_its_loss_was_multiplied_by() -> None:
    training = ours("AdamW-foreach", LossScaling(growth_interval=1))
    scales = []
    for seed in range(3):
        training.backward(seed)
        scales.append(clip_and_step(training.scaler, training.optimizer, 1.0).loss_scale)
        training.optimizer.zero_grad()
    assert scales == [2.0**16, 2.0**17, 2.0**18]


def test_successive_updates_look_at_different_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small sample of gradients of which one half of the first layer is zero."""
    monkeypatch.setattr("fp16_patch.loss_scaling.gradient_statistics.SAMPLE", 4)
    training = ours("AdamW-foreach")
    shares = set()
    for _ in range(8):
        training.backward(seed=0)
        training.model[0].weight.grad[:4] = 0
        shares.add(clip_and_step(training.scaler, training.optimizer, 1.0).statistics.underflow_share)
        training.optimizer.zero_grad()
    assert len(shares) > 1


def test_health_costs_nothing_where_it_is_not_asked_for() -> None:
    training = ours("AdamW-foreach")
    training.backward(seed=0)
    statistics = clip_and_step(training.scaler, training.optimizer, 1.0, headroom=False).statistics
    assert (statistics.peak, statistics.underflow_share) == (None, None)


@FEW_OPTIMIZERS
@pytest.mark.parametrize("scale", [2.0**-24, 2.0**31])
def test_weights_do_not_depend_on_the_scale(optimizer: str, scale: float) -> None:
    """FP32 gradients: a power of two changes no bit of them, at either end of what is allowed."""
    ends = []
    for start in (1.0, scale):
        training = ours(optimizer, LossScaling(init_scale=start, min_scale=min(start, 1.0)))
        for seed in range(3):
            training.backward(seed)
            update = clip_and_step(training.scaler, training.optimizer, 1e-2)
            assert update.loss_scale == start
            training.optimizer.zero_grad()
        ends.append((training.everything(), update.grad_norm))
    assert_close(*ends)


# A skipped update changes nothing.


def skipped(training: Training, before: dict[str, Any], scale: float) -> Update:
    update = clip_and_step(training.scaler, training.optimizer, 1.0)
    assert update.skipped
    assert update.grad_norm is None
    assert update.loss_scale == scale
    assert training.scaler.get_scale() == scale / 2
    assert differences(before, training.everything()) == []
    return update


SIZES = (32, 8, 8, 1)
"""Elements of each parameter."""


@UNTIMED
@given(
    st.sampled_from(sorted(OPTIMIZERS)),
    st.integers(0, 3).flatmap(lambda parameter: st.tuples(st.just(parameter), st.integers(0, SIZES[parameter] - 1))),
    st.sampled_from([math.inf, -math.inf, math.nan]),
    st.booleans(),
)
def test_one_bad_element_skips_the_update(optimizer: str, place: tuple[int, int], value: float, first: bool) -> None:
    """Weights, moments and step counters stay as they were bit for bit; the next good update is made."""
    training = ours(optimizer)
    assert tuple(parameter.numel() for parameter in training.model.parameters()) == SIZES
    if not first:
        training.backward(seed=0)
        clip_and_step(training.scaler, training.optimizer, 1.0)
        training.optimizer.zero_grad()
    before = training.everything()
    training.backward(seed=1)
    training.spoil(value, *place)
    skipped(training, before, scale=65536.0)
    assert training.scaler.counts.skipped == training.scaler.counts.consecutive == 1

    training.optimizer.zero_grad()
    training.backward(seed=1)
    update = clip_and_step(training.scaler, training.optimizer, 1.0)
    assert not update.skipped
    assert training.scaler.counts.consecutive == 0
    assert "/model/0.weight" in differences(before, training.everything())
    assert all(parameter.isfinite().all() for parameter in training.model.parameters())


def test_a_skipped_update_is_as_if_it_had_never_been() -> None:
    """But for the scale, which for FP32 gradients is no difference either."""
    with_skip, without = ours("AdamW-fused"), ours("AdamW-fused")
    for seed in range(4):
        for training in (with_skip, without):
            training.backward(seed)
            clip_and_step(training.scaler, training.optimizer, 1.0)
            training.optimizer.zero_grad()
        with_skip.backward(seed + 100)
        with_skip.spoil(math.nan)
        skipped(with_skip, with_skip.everything(), with_skip.scaler.get_scale())
        with_skip.optimizer.zero_grad()
    assert_close(with_skip.everything(), without.everything())


# What is refused, before anything changed.


def refused(training: Training, code: str, *named: str) -> None:
    before, counts = training.everything(), copy.copy(training.scaler.counts)
    gradients = [p.grad.clone() for p in training.model.parameters()]
    with raises_code(code, *named):
        clip_and_step(training.scaler, training.optimizer, 1.0)
    assert differences(before, training.everything()) == []
    assert training.scaler.counts == counts
    for parameter, gradient in zip(training.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0, equal_nan=True)


@FEW_OPTIMIZERS
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_refused(optimizer: str, half: torch.dtype) -> None:
    training = ours(optimizer)
    training.model[2].to(half)
    for parameter in training.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    refused(training, "half-precision-master", str(half).removeprefix("torch."))


@FEW_OPTIMIZERS
@pytest.mark.parametrize("scale", [0.0, math.inf, -math.inf, math.nan, -1.0, 2.0**-140])
def test_a_scale_set_by_hand_to_what_cannot_be_divided_by_is_refused(optimizer: str, scale: float) -> None:
    training = ours(optimizer)
    training.backward(seed=0)
    training.scaler._scale.fill_(scale)
    refused(training, "loss-scale-unusable")


@FEW_OPTIMIZERS
def test_gradients_that_were_unscaled_already_are_refused(optimizer: str) -> None:
    """They would be divided by the scale twice."""
    training = ours(optimizer)
    training.backward(seed=0)
    training.scaler.unscale_(training.optimizer)
    refused(training, "gradients-unscaled-twice")


def test_sparse_gradients_are_refused_by_name() -> None:
    model = torch.nn.ModuleDict({"tokens": torch.nn.Embedding(5, 2, sparse=True)})
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    scaler = FsdpLossScaler(DEFAULTS, "cpu", module=model)
    scaler.scale(model["tokens"](torch.tensor([1, 3])).sum()).backward()
    before = model["tokens"].weight.detach().clone()
    with raises_code("sparse-gradient", "tokens.weight", "sparse=False"):
        clip_and_step(scaler, optimizer, 1.0)
    assert torch.equal(model["tokens"].weight, before)
    assert scaler.counts.updates == 0


def test_a_sparse_gradient_of_an_unknown_module_is_refused_by_its_shape() -> None:
    parameter = torch.nn.Parameter(torch.zeros(5, 2))
    parameter.grad = torch.ones(5, 2).to_sparse()
    with raises_code("sparse-gradient", "(5, 2)"):
        clip_and_step(FsdpLossScaler(DEFAULTS, "cpu"), torch.optim.SGD([parameter], lr=0.1), 1.0)


def test_a_fused_optimizer_keeps_no_trace_of_the_scale() -> None:
    """torch's contract: two attributes for one step. Left behind, the next step of anybody would divide by them."""
    training = ours("AdamW-fused")
    training.backward(seed=0)
    clip_and_step(training.scaler, training.optimizer, 1.0)
    assert not {"grad_scale", "found_inf"} & vars(training.optimizer).keys()

    training.backward(seed=1)
    training.optimizer.register_step_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        clip_and_step(training.scaler, training.optimizer, 1.0)
    assert not {"grad_scale", "found_inf"} & vars(training.optimizer).keys()
