# SPDX-License-Identifier: Apache-2.0
"""This rank's gradients as an optimizer holds them, whatever sharded them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fp16_patch.errors import Fp16PatchError

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Gradient:
    """``local`` is this rank's part, any shape, float32; ``copies`` is how many ranks hold that same part."""

    local: torch.Tensor
    copies: float
    sampled: bool = True
    """Whether an exact zero in it means underflow."""


@dataclass(frozen=True)
class Layout:
    """What plain tensors do not know of themselves. DTensors (FSDP2) know their own sharding.

    ``world_size`` counts the ranks that agree on a step, ``shards`` those a plain parameter is split over
    (FSDP1's sharding group; 1 without sharding). ``lookups`` are ids of parameters whose rows get no
    gradient where their token does not occur: zero, and no underflow. ``names`` are the parameters' names by id.
    """

    world_size: int = 1
    shards: int = 1
    lookups: frozenset[int] = frozenset()
    names: Mapping[int, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, module: torch.nn.Module, world_size: int) -> Layout:
        """Read off a module that is wrapped already, or not at all."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        shards, lookups = 1, set()
        for part in module.modules():
            if isinstance(part, torch.nn.Embedding):
                lookups |= {id(parameter) for parameter in part.parameters(recurse=False)}
            if isinstance(part, FullyShardedDataParallel) and (handle := part._handle) is not None:
                if handle.uses_sharded_strategy:
                    shards = handle.process_group.size()
                if any(isinstance(info.module, torch.nn.Embedding) for info in handle.flat_param._param_infos):
                    lookups.add(id(handle.flat_param))
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        return cls(world_size, shards, frozenset(lookups), names)


def gradients_of(optimizer: torch.optim.Optimizer, layout: Layout) -> Iterator[Gradient]:
    """This rank's gradients of all the optimizer's parameters.

    Raises :class:`Fp16PatchError` on a half-precision master weight or gradient: FP16 ones make AdamW's first
    step non-finite, BF16 ones lose small updates. Raises it on a sparse gradient too.
    """
    splits: dict[tuple[int, Any], int] = {}  # a model has few layouts and many parameters
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout is not torch.strided:
                name = layout.names.get(id(parameter), f"a parameter of shape {tuple(parameter.shape)}")
                raise Fp16PatchError(
                    f"{name} has a sparse gradient; loss scaling does not support sparse gradients",
                    code="sparse-gradient",
                    allowed="dense gradients",
                    next_step="build the embedding with sparse=False",
                )
            if parameter.dtype in HALF or gradient.dtype in HALF:
                raise Fp16PatchError(
                    f"the optimizer holds a {_name(parameter.dtype)} parameter of shape {tuple(parameter.shape)} "
                    f"with a {_name(gradient.dtype)} gradient",
                    code="half-precision-master",
                    allowed="float32 master weights and gradients",
                    next_step="build the model in float32 and let FSDP's mixed precision cast it for compute",
                )
            local, shards = gradient, layout.shards
            if hasattr(gradient, "placements"):
                local = gradient.to_local()
                layout_of = (id(gradient.device_mesh), gradient.placements)
                if layout_of not in splits:
                    splits[layout_of] = _ranks_split_over(gradient)
                shards = splits[layout_of]
            yield Gradient(local, layout.world_size / shards, sampled=id(parameter) not in layout.lookups)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _ranks_split_over(gradient: Any) -> int:
    if any(place.is_partial() for place in gradient.placements):
        raise Fp16PatchError(
            f"a gradient of shape {tuple(gradient.shape)} is not summed over its ranks yet: "
            f"placements {gradient.placements}",
            code="gradient-not-summed",
            allowed="sharded and replicated gradients",
            next_step="redistribute it to its parameter's placements before the update",
        )
    # Not is_shard(): no is its answer for FSDP2's placement of what tensor parallelism splits too.
    split = [i for i, place in enumerate(gradient.placements) if not place.is_replicate()]
    return math.prod(gradient.device_mesh.size(i) for i in split)
