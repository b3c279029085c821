# SPDX-License-Identifier: Apache-2.0
"""Traces of wrapped models, of distributed tensors, and of several ranks together."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import traced_models
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from traced_models import WIDTH, Layer, Module, chain, first, hooks_of, new, run, traced

import fp16_patch
from fp16_patch.loss_scaling.diagnosis.module_trace import Extremes, ModuleTrace, merge_rows

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
    paths = [str(Path(fp16_patch.__file__).parents[1]), str(Path(traced_models.__file__).parent)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
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
    with ModuleTrace(model) as trace:
        run(model, 2.0**10 if rank else 1.0, x=torch.full((2, WIDTH), 2.0 - rank))
    rows = trace.rows()
    if rank:
        extra = torch.nn.Sequential()
        extra.add_module("extra", torch.nn.Identity())
        with ModuleTrace(extra) as trace:
            extra(torch.full((2,), 7.0))
        rows += [row for row in trace.rows() if row.module]
    merged = merge_rows(rows)
    written = {"alone": [asdict(row) for row in rows], "merged": [asdict(row) for row in merged]}
    (folder / f"{rank}.json").write_text(json.dumps(written, allow_nan=False))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), Path(sys.argv[2]))
