# SPDX-License-Identifier: Apache-2.0
"""What is seen of one forward and backward pass, on small models that really overflow in FP16 on the CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fp16_patch
from fp16_patch.loss_scaling.diagnosis.module_trace import Extremes, ModuleRow, ModuleTrace, merge_rows, trace_modules

Module = torch.nn.Module
WIDTH = 8


class Gated(Module):
    """``down(act(gate(x)) * up(x))``: the product is this module's own work, not a child's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.act = torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Layer(Module):
    def __init__(self, how: str | None) -> None:
        super().__init__()
        self.norm, self.mlp, self.how = torch.nn.LayerNorm(WIDTH), Gated(), how

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        if self.how is None:
            return (x + self.mlp(self.norm(x)),)
        return (x + checkpoint(lambda y: self.mlp(self.norm(y)), x, use_reentrant=self.how == "reentrant"),)


class Model(Module):
    """Decoder layers that return tuples, and an output like transformers': a mapping with a nested tuple."""

    def __init__(self, how: str | None = None) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(how) for _ in range(2))
        self.head = torch.nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1])[0])
        return {"logits": self.head(states[-1]), "states": (tuple(states), None), "length": torch.tensor(3)}


def new(how: str | None = None) -> Model:
    torch.manual_seed(0)
    return Model(how)


INPUT = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)


def run(module: Module, scale: float = 1.0, x: torch.Tensor = INPUT) -> None:
    """Forward under FP16 autocast, a loss in FP32, its backward."""
    with torch.autocast("cpu", dtype=torch.float16):
        output = module(x.clone().requires_grad_())
    logits = output["logits"] if isinstance(output, dict) else output
    (logits.float().sum() * scale).backward()


def traced(module: Module, *args: Any, **options: Any) -> dict[str, ModuleRow]:
    with trace_modules(module) as trace:
        run(module, *args, **options)
    return {row.module: row for row in trace.rows()}


def first(rows: dict[str, ModuleRow], order: str) -> str:
    found = {name: getattr(row, order) for name, row in rows.items() if getattr(row, order) is not None}
    return min(found, key=lambda name: found[name])


def chain(*weights: float) -> torch.nn.Sequential:
    """Linear layers that multiply the sum of their inputs: gradients and activations grow by weight x width."""
    layers = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in weights])
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.fill_(weight)
    return layers


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

    with trace_modules(module := Masked()) as trace:
        module(torch.full((2,), 2.0), mask=torch.full((2,), -math.inf))
    assert trace.rows()[0].forward_overflow == 0


def test_passes_start_at_zero_again() -> None:
    """Two micro-batches, of which the second overflows."""
    model = chain(1.0, 1.0)
    with trace_modules(model) as trace:
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
    with trace_modules(model) as trace, NoReading():
        run(model)
    with pytest.raises(AssertionError, match="reads a number"), NoReading():
        trace.rows()


def hooks_of(module: Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_hooks_are_gone_afterwards() -> None:
    model = new()
    with trace_modules(model) as trace:
        assert hooks_of(model) > 10
        logits = model(INPUT)["logits"]
    before = trace.rows()
    logits.sum().backward()
    assert hooks_of(model) == 0
    assert trace.rows() == before, "a backward pass after the end was watched"


def test_hooks_are_gone_after_an_error() -> None:
    model = new()
    with pytest.raises(RuntimeError, match="normalized_shape"), trace_modules(model):
        run(model, x=torch.ones(2, WIDTH + 1))
    assert hooks_of(model) == 0


def test_hooks_of_others_stay() -> None:
    model = new()
    model.head.register_forward_hook(lambda *_: None)
    traced(model)
    assert hooks_of(model) == 1


def test_without_a_backward_pass() -> None:
    model = new()
    with trace_modules(model) as trace, torch.no_grad():
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


# Wrapped models, on the one rank of a process group.


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(kind: str) -> Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    model = new()
    if kind.startswith("checkpoint"):
        how = CheckpointImpl.REENTRANT if kind.endswith("reentrant") else CheckpointImpl.NO_REENTRANT
        for at, layer in enumerate(model.layers):
            model.layers[at] = checkpoint_wrapper(layer, checkpoint_impl=how)
        return model
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (1,))
        for part in (*model.layers, model):
            fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float16))
        return model
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Layer}),
        device_id=torch.device("cpu"),
        use_orig_params=kind == "fsdp1-original",
    )


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kind", ["fsdp1", "fsdp1-original", "fsdp2", "checkpoint", "checkpoint-reentrant"])
def test_wrappers_do_not_show(kind: str) -> None:
    module, plain = wrapped(kind), traced(new(), 2.0**4)
    hooks = hooks_of(module)
    rows = traced(module, 2.0**4)
    assert rows.keys() == plain.keys()
    for name, row in rows.items():
        assert (row.class_name, row.has_parameters) == (plain[name].class_name, plain[name].has_parameters), name
        assert row.gradient_peak == pytest.approx(plain[name].gradient_peak, rel=0.01), name
    assert first(rows, "backward_order") == "head"
    assert hooks_of(module) <= hooks + 1, "FSDP adds one of its own when it first runs"


@pytest.mark.usefixtures("one_rank")
def test_dtensors_are_looked_at_by_their_local_part() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    extremes = Extremes()
    extremes.add(distribute_tensor(torch.tensor([3.0, math.inf]), init_device_mesh("cpu", (1,)), [Shard(0)]))
    assert (extremes.peak, extremes.bad) == (3.0, 1)


def test_nested_tensors_are_looked_at_by_their_elements() -> None:
    rows = [torch.ones(2), torch.tensor([-5.0, math.nan, 0.0])]
    extremes = Extremes()
    extremes.add(torch.nested.as_nested_tensor(rows, layout=torch.jagged))
    assert (extremes.peak, extremes.nonfinite) == (5.0, 0.2)


# Several ranks.


def test_without_a_process_group_there_is_one_rank() -> None:
    rows = list(traced(new()).values())
    assert merge_rows(rows) == rows


@pytest.mark.distributed
def test_rows_of_two_ranks_are_merged(tmp_path: Path) -> None:
    """Run as ranks, this file gives rank 1 another scale and a module of its own; see :func:`rank_main`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(fp16_patch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for rank, process in enumerate(ranks):
            _, log = process.communicate(timeout=90)
            assert process.returncode == 0, f"rank {rank}:\n{log.decode(errors='replace')[-3000:]}"
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert zero["merged"] == one["merged"], "the ranks do not agree"
    merged = {row["module"]: row for row in zero["merged"]}
    alone = [{row["module"]: row for row in rank["alone"]} for rank in (zero, one)]
    assert alone[0]["1"]["first_overflow"] is None
    assert alone[1]["1"]["first_overflow"] == merged["1"]["first_overflow"] == 3, "after 3, the whole, and 2"
    assert merged["1"]["gradient_nonfinite"] == 0.5
    assert merged["2"]["gradient_peak"] == alone[1]["2"]["gradient_peak"] == 2.0**13
    assert merged["0"]["activation_peak"] == max(rank["0"]["activation_peak"] for rank in alone)
    assert merged["extra"] == alone[1]["extra"]
    assert "extra" not in alone[0]


def rank_main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2)
    model = chain(0.01, 1.0, 100.0, 1.0)
    with trace_modules(model) as trace:
        run(model, 2.0**10 if rank else 1.0, x=torch.full((2, WIDTH), 2.0 - rank))
    rows = trace.rows()
    if rank:
        extra = torch.nn.Sequential()
        extra.add_module("extra", torch.nn.Identity())
        with trace_modules(extra) as trace:
            extra(torch.full((2,), 7.0))
        rows += [row for row in trace.rows() if row.module]
    merged = merge_rows(rows)
    written = {"alone": [asdict(row) for row in rows], "merged": [asdict(row) for row in merged]}
    (folder / f"{rank}.json").write_text(json.dumps(written, allow_nan=False))
    dist.barrier()
    dist.destroy_process_group()


def test_a_trace_without_any_call_is_empty() -> None:
    trace = ModuleTrace(new())
    trace.remove_hooks()
    assert trace.rows() == []


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), Path(sys.argv[2]))
