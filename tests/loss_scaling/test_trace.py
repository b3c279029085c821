# SPDX-License-Identifier: Apache-2.0
"""What is seen of one forward and backward pass, on small models that really overflow in FP16 on the CPU."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from traced_models import INPUT, WIDTH, Module, chain, first, hooks_of, new, run, traced

from fp16_patch.loss_scaling.diagnosis.module_trace import Extremes, ModuleRow, ModuleTrace

# The numbers.


def test_peaks_are_those_of_outputs_and_of_their_gradients() -> None:
    model, kept = new(), {}
    for name in ("layers.0.mlp.up", "layers.1", "head"):
        part = model.get_submodule(name)

        def keep(module: Module, _: Any, output: Any, name: str = name) -> None:
            kept[name] = output[0] if isinstance(output, tuple) else output
            kept[name].retain_grad()

        part.register_forward_hook(keep)
    rows = traced(model, 4.0)
    for name, output in kept.items():
        assert rows[name].activation_peak == float(output.detach().abs().max()), name
        assert rows[name].gradient_peak == float(output.grad.abs().max()), name
        assert rows[name].dtype == str(output.dtype).removeprefix("torch."), name
    assert rows["head"].gradient_peak == 4.0, "gradients are multiplied by the loss scale"
    assert all(row.activation_nonfinite == row.gradient_nonfinite == 0 for row in rows.values())
    assert all(row.forward_overflow is row.first_overflow is None for row in rows.values())


def test_every_module_that_is_called_has_a_row() -> None:
    rows = traced(model := new())
    called = {name for name, part in model.named_modules() if not isinstance(part, torch.nn.ModuleList)}
    assert set(rows) == called
    assert rows["layers.0.mlp"].class_name == "Gated"
    assert rows["layers.0.mlp"].has_parameters
    assert not rows["layers.0.mlp.act"].has_parameters


def test_orders_are_those_of_the_passes() -> None:
    rows = traced(new())
    forward = [name for name, _ in sorted(rows.items(), key=lambda item: item[1].forward_order)]
    assert forward[:6] == [f"layers.0.{part}" for part in ("norm", "mlp.gate", "mlp.act", "mlp.up", "mlp.down", "mlp")]
    assert forward[-2:] == ["head", ""]
    assert first(rows, "backward_order") == "head"
    for inner, outer in (("layers.1.mlp.down", "layers.0.mlp.down"), ("layers.0.mlp.down", "layers.0.norm")):
        assert rows[inner].backward_order < rows[outer].backward_order


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_peak_is_that_of_finite_elements(dtype: torch.dtype, value: float) -> None:
    extremes = Extremes()
    extremes.add(torch.tensor([[1.0, value], [-2.0, 0.0]], dtype=dtype).T, order=3)
    assert (extremes.peak, extremes.nonfinite, extremes.first_bad) == (2.0, 0.25, 3)
    extremes.add(torch.full((2, 2), value, dtype=dtype), order=1)
    assert (extremes.peak, extremes.nonfinite, extremes.first_bad) == (2.0, 0.625, 1)
    extremes.add(torch.full((8,), 0.5, dtype=dtype), order=0)
    assert (extremes.peak, extremes.nonfinite, extremes.first_bad) == (2.0, 0.3125, 1)


def test_nothing_finite_and_nothing_at_all() -> None:
    extremes = Extremes()
    extremes.add(torch.empty(0))
    extremes.add(torch.ones(3, dtype=torch.int64))
    assert (extremes.peak, extremes.nonfinite, extremes.first_bad) == (None, None, None)
    extremes.add(torch.tensor([math.nan]))
    assert (extremes.peak, extremes.nonfinite, extremes.first_bad) == (None, 1.0, 0)


def test_large_tensors_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fp16_patch.loss_scaling.diagnosis.module_trace.CHUNK", 7)
    values = torch.arange(100.0)
    values[[3, 50, 99]] = math.inf
    extremes = Extremes()
    extremes.add(values)
    assert (extremes.peak, extremes.bad) == (98.0, 3)


# Where inf and NaN come up first.


def test_the_first_module_that_overflows_in_the_forward_pass() -> None:
    rows = traced(chain(1.0, 1e4, 1.0, 1.0), x=torch.ones(2, WIDTH))
    assert [name for name, row in rows.items() if row.activation_nonfinite] == ["1", "2", "3", ""]
    assert rows["1"].forward_overflow == rows["1"].forward_order == 1
    assert rows["2"].forward_overflow is rows["3"].forward_overflow is None, "their inputs were not finite"
    assert rows["1"].activation_peak is None
    assert rows["1"].activation_nonfinite == 1.0


def test_an_overflow_between_two_modules_is_that_of_the_one_around_them() -> None:
    model = new()
    with torch.no_grad():
        model.layers[1].mlp.gate.weight.fill_(300.0)
        model.layers[1].mlp.up.weight.fill_(300.0)
        model.layers[1].norm.bias.fill_(1.0)
    rows = traced(model)
    assert rows["layers.1.mlp.up"].activation_nonfinite == 0
    assert rows["layers.1.mlp.down"].activation_nonfinite > 0
    assert rows["layers.1.mlp.down"].forward_overflow is None
    assert first(rows, "forward_overflow") == "layers.1.mlp"


def test_the_first_gradient_that_overflows_in_the_backward_pass() -> None:
    rows = traced(chain(0.01, 1.0, 100.0, 1.0), 2.0**10, x=torch.ones(2, WIDTH))
    assert all(row.activation_nonfinite == 0 for row in rows.values())
    assert {name for name, row in rows.items() if row.first_overflow is not None} == {"0", "1"}
    assert first(rows, "first_overflow") == "1", "the gradient that 2 sends back, 1024 x 8 x 100 x 8, overflows"
    assert (rows["2"].gradient_peak, rows["2"].gradient_nonfinite) == (2.0**13, 0.0)
    assert rows["1"].gradient_nonfinite == 1.0


def test_an_attention_mask_excuses_nobody() -> None:
    class Masked(Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (x.half() * 65504 + mask.half().exp()).float()

    with ModuleTrace(module := Masked()) as trace:
        module(torch.full((2,), 2.0), mask=torch.full((2,), -math.inf))
    assert trace.rows()[0].forward_overflow == 0


def test_passes_start_at_zero_again() -> None:
    """Two micro-batches, of which the second overflows."""
    model = chain(1.0, 1.0)
    with ModuleTrace(model) as trace:
        run(model, x=torch.ones(2, WIDTH))
        run(model, math.inf, x=torch.full((2, WIDTH), 4.0))
    head = {row.module: row for row in trace.rows()}["1"]
    assert (head.forward_order, head.backward_order, head.first_overflow) == (1, 0, 0)
    assert head.activation_peak == 4.0 * WIDTH * WIDTH, "the largest of both"
    assert head.gradient_nonfinite == 0.5


def test_a_module_called_twice_has_one_row() -> None:
    class Twice(Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = chain(100.0)[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.inner(x))

    rows = traced(Twice(), x=torch.ones(2, WIDTH))
    assert rows["inner"].forward_overflow == 1, "800 fits, 640,000 does not"
    assert rows["inner"].activation_peak == 800.0
    assert rows["inner"].activation_nonfinite == 0.5
    assert rows["inner"].forward_order == 0


# What models and trainers do.


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("scale", [1.0, 2.0**20])
def test_gradient_checkpointing_shows_the_same(how: str, scale: float) -> None:
    plain, checkpointed = traced(new(), scale), traced(new(how), scale)
    assert plain.keys() == checkpointed.keys()
    for name, row in plain.items():
        other = checkpointed[name]
        assert (other.activation_peak, other.gradient_peak) == (row.activation_peak, row.gradient_peak), name
        assert (other.gradient_nonfinite, other.dtype) == (row.gradient_nonfinite, row.dtype), name
        assert (other.forward_order, other.forward_overflow) == (row.forward_order, row.forward_overflow), name
    assert first(checkpointed, "backward_order") == "head"
    if scale > 1:
        assert first(checkpointed, "first_overflow") == first(plain, "first_overflow")


@pytest.mark.parametrize("how", [None, "reentrant", "non-reentrant"])
def test_the_pass_is_the_same_with_and_without(how: str | None) -> None:
    watched, alone = new(how), new(how)
    traced(watched, 2.0**10)
    run(alone, 2.0**10)
    for (name, one), other in zip(watched.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


@pytest.mark.parametrize("how", [None, "reentrant", "non-reentrant"])
def test_nothing_is_read_during_the_pass(how: str | None) -> None:
    """On a GPU every number that Python looks at waits for the device."""

    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func is not torch.ops.aten._local_scalar_dense.default, "a hook reads a number off the device"
            return func(*args, **kwargs or {})

    model = new(how)
    with ModuleTrace(model) as trace, NoReading():
        run(model)
    with pytest.raises(AssertionError, match="reads a number"), NoReading():
        trace.rows()


def test_hooks_are_gone_afterwards() -> None:
    model = new()
    with ModuleTrace(model) as trace:
        assert hooks_of(model) > 10
        logits = model(INPUT)["logits"]
    before = trace.rows()
    logits.sum().backward()
    assert hooks_of(model) == 0
    assert trace.rows() == before, "a backward pass after the end was watched"


def test_hooks_are_gone_after_an_error() -> None:
    model = new()
    with pytest.raises(RuntimeError, match="normalized_shape"), ModuleTrace(model):
        run(model, x=torch.ones(2, WIDTH + 1))
    assert hooks_of(model) == 0


def test_hooks_of_others_stay() -> None:
    model = new()
    model.head.register_forward_hook(lambda *_: None)
    traced(model)
    assert hooks_of(model) == 1


def test_without_a_backward_pass() -> None:
    model = new()
    with ModuleTrace(model) as trace, torch.no_grad():
        model(INPUT)
    for row in trace.rows():
        assert (row.gradient_peak, row.gradient_nonfinite, row.backward_order, row.first_overflow) == (None,) * 4
        assert row.activation_peak is not None


def test_outputs_that_get_no_gradient() -> None:
    class Halves(Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x.split(WIDTH // 2, dim=-1)

    class Half(Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves, self.frozen = Halves(), torch.nn.Embedding(3, WIDTH).requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.frozen(torch.zeros(1, dtype=torch.int64))
            return self.halves(x * 2)[1]

    rows = traced(Half(), 4.0)
    assert rows["halves"].gradient_peak == 4.0
    assert rows["frozen"].gradient_peak is None
    assert rows["frozen"].has_parameters


def test_in_place_changes_of_an_output() -> None:
    """The gradient is that of the output as it was returned."""

    class Changed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = chain(1.0)[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).mul_(16.0)

    rows = traced(Changed(), x=torch.ones(2, WIDTH))
    assert (rows["inner"].gradient_peak, rows[""].gradient_peak) == (16.0, 1.0)


def test_rows_are_json() -> None:
    rows = [*traced(chain(1.0, 1e5)).values(), *traced(new(), math.nan).values()]
    read = json.loads(json.dumps([asdict(row) for row in rows], allow_nan=False))
    assert [ModuleRow(**row) for row in read] == rows


def test_a_trace_without_any_call_is_empty() -> None:
    with ModuleTrace(new()) as trace:
        pass
    assert trace.rows() == []


def test_a_module_that_writes_into_its_inputs_is_still_the_first() -> None:
    """vLLM's fused RMSNorm adds the residual in place: after the call its inputs are as infinite as its outputs."""

    class AddInPlace(Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2.0**15)

    model = torch.nn.Sequential(torch.nn.Identity(), AddInPlace(), torch.nn.Identity())
    x = torch.full((2, 2), 4.0, dtype=torch.float16)
    for in_place, found in ((False, []), (True, ["1"])):
        with torch.inference_mode(), ModuleTrace(model, in_place=in_place) as trace:
            model(x.clone())
        overflowed = [row.module for row in trace.rows() if row.module and row.forward_overflow is not None]
        assert overflowed == found
        assert hooks_of(model) == 0
