# SPDX-License-Identifier: Apache-2.0
"""A small model, spread over the ranks in each of the ways that training does, and what can be read off it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.precision.loss_scaling import LossScaling

# Here once and not in every rank: the first optimizer of a process imports torch's compiler.
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])

INPUTS = 6
FP16 = MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float32)


def small() -> torch.nn.Sequential:
    """Eleven rows and one row: on two and four ranks some hold less than others, or nothing."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(INPUTS, 11), torch.nn.Tanh(), torch.nn.Linear(11, 1))


def one_row() -> torch.nn.Sequential:
    """Weight and bias have one row each: FSDP2 leaves all ranks but the first without anything."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(INPUTS, 1))


def divisible() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(INPUTS, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))


def fsdp2(
    model: torch.nn.Sequential, mesh: Any = None, offload: OffloadPolicy | None = None, layers: bool = False
) -> torch.nn.Module:
    """All parameters in one group, or each layer's in its own."""
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*(part for part in model if layers and isinstance(part, torch.nn.Linear)), model):
        fully_shard(part, mesh=mesh, mp_policy=FP16, offload_policy=offload or OffloadPolicy())
    return model


def offloaded() -> torch.nn.Module:
    return fsdp2(small(), offload=CPUOffloadPolicy(pin_memory=False))


def hsdp() -> torch.nn.Module:
    return fsdp2(small(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


def with_tensor_parallelism() -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(divisible(), mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fsdp2(model, mesh["data"])


def fsdp1(strategy: ShardingStrategy, original: bool) -> torch.nn.Module:
    precision = MixedPrecision(param_dtype=torch.float16, reduce_dtype=torch.float32)
    mesh = None
    if strategy is ShardingStrategy.HYBRID_SHARD:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return FullyShardedDataParallel(
        small(),
        device_mesh=mesh,
        sharding_strategy=strategy,
        mixed_precision=precision,
        use_orig_params=original,
        device_id=torch.device("cpu"),
    )


WRAPS = {
    "replicated": small,
    "fsdp2": lambda: fsdp2(small()),
    "fsdp2-layers": lambda: fsdp2(small(), layers=True),
    "fsdp2-one-row": lambda: fsdp2(one_row()),
    "fsdp2-offload": offloaded,
    "hsdp": hsdp,
    "fsdp2-tp": with_tensor_parallelism,
    "fsdp1": lambda: fsdp1(ShardingStrategy.FULL_SHARD, original=False),
    "fsdp1-original": lambda: fsdp1(ShardingStrategy.FULL_SHARD, original=True),
    "fsdp1-hybrid": lambda: fsdp1(ShardingStrategy.HYBRID_SHARD, original=True),
}


def local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@dataclass
class Training:
    """A spread model, its optimizer and scaler; every rank has data of its own."""

    wrap: str
    rank: int
    settings: LossScaling
    fused: bool = False
    sync_every: bool = True
    """Whether FSDP reduces gradients after every micro-batch, or holds them to the last one."""
    group: Any = None

    def __post_init__(self) -> None:
        self.model = WRAPS[self.wrap]()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=0.1, fused=self.fused)
        self.scaler = FsdpLossScaler(self.settings, "cpu", process_group=self.group, module=self.model)
        self.generator = torch.Generator().manual_seed(self.rank // 2 if self.wrap == "fsdp2-tp" else self.rank)

    def backward(self, factors: tuple[float, ...] = (1.0, 1.0)) -> None:
        """One micro-batch for each factor, which its loss is multiplied by."""
        self.optimizer.zero_grad()
        for number, factor in enumerate(factors):
            with self._unless_reduced_later(last=number == len(factors) - 1):
                batch = torch.randn(3, INPUTS, generator=self.generator)
                loss = (self.model(batch).float() - 1.0).square().mean() / len(factors)
                self.scaler.scale(loss * factor).backward()
        if self.wrap == "replicated":
            for parameter in self.model.parameters():
                dist.all_reduce(parameter.grad, group=self.group)
                parameter.grad /= dist.get_world_size(self.group)

    def _unless_reduced_later(self, last: bool) -> Any:
        now = self.sync_every or last
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(now)
        if isinstance(self.model, FullyShardedDataParallel) and not now:
            return self.model.no_sync()
        return nullcontext()

    def gradients(self) -> list[torch.Tensor]:
        """This rank's parts that hold something."""
        found = [local(p.grad) for p in self.model.parameters() if p.grad is not None]
        return [gradient for gradient in found if gradient.numel()]

    def any_rank_holds_what_is_not_finite(self) -> bool:
        """Looked for element by element, without the scaler."""
        bad = torch.tensor(float(not all(gradient.isfinite().all() for gradient in self.gradients())))
        dist.all_reduce(bad, dist.ReduceOp.MAX)
        return bool(bad)

    def whole(self, what: str) -> list[torch.Tensor]:
        """Copies of all parameters ("data") or gradients ("grad"), put together again."""
        if not isinstance(self.model, FullyShardedDataParallel):
            tensors = [getattr(parameter, what) for parameter in self.model.parameters()]
            return [(t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for t in tensors]
        if what == "grad" and not self.model._use_orig_params:
            return [self._flat_gradient()]
        with FullyShardedDataParallel.summon_full_params(self.model, writeback=False, with_grads=what == "grad"):
            return [getattr(parameter, what).detach().clone() for parameter in self.model.parameters()]

    def _flat_gradient(self) -> torch.Tensor:
        (flat,) = self.model.parameters()
        parts = [torch.empty_like(flat.grad) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, flat.grad)
        return torch.cat(parts)

    def bits(self) -> str:
        """Equal exactly when all parameters of all ranks are, bit for bit."""
        return digest(self.whole("data"))

    def own_bits(self) -> str:
        """Of this rank's parts of weights and optimizer state, step counters included."""
        return digest(self._own())

    def _own(self) -> Iterator[torch.Tensor]:
        for parameter in self.model.parameters():
            yield local(parameter)
            for _, value in sorted(self.optimizer.state[parameter].items()):
                yield local(value)

    def finite(self) -> bool:
        return all(bool(local(parameter).isfinite().all()) for parameter in self.model.parameters())


def digest(tensors: Any) -> str:
    digested = hashlib.sha256()
    for tensor in tensors:
        digested.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digested.hexdigest()


def norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
