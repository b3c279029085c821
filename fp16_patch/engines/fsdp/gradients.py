# SPDX-License-Identifier: Apache-2.0
"""Read one rank's gradients of an FSDP1, FSDP2 or plain module, as its optimizer holds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling.gradients import Gradient, Layout, embedding_param_ids

HALF = (torch.float16, torch.bfloat16)


def read_layout(module: torch.nn.Module, world_size: int) -> Layout:
    """Return the layout of ``module``, which FSDP has already wrapped or never will."""
    shards, embeddings = 1, set(embedding_param_ids(module))
    for part in module.modules():
        if isinstance(part, FullyShardedDataParallel) and (handle := part._handle) is not None:
            if handle.uses_sharded_strategy:
                shards = handle.process_group.size()
            if any(isinstance(info.module, torch.nn.Embedding) for info in handle.flat_param._param_infos):
                embeddings.add(id(handle.flat_param))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return Layout(world_size, shards, frozenset(embeddings), names)


def read_gradients(optimizer: torch.optim.Optimizer, layout: Layout) -> Iterator[Gradient]:
    """Yield this rank's gradients of all the optimizer's parameters.

    Raises:
        Fp16PatchError: A master weight or gradient has half precision. In FP16 AdamW's first step is not finite; in
            BF16 small updates are lost. A sparse gradient, or one that is not summed over its ranks, raises too.
    """
    splits: dict[tuple[int, Any], int] = {}  # a model has few layouts and many parameters
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            _check(parameter, layout)
            local, shards = gradient, layout.shards
            if hasattr(gradient, "placements"):
                local = gradient.to_local()
                layout_of = (id(gradient.device_mesh), gradient.placements)
                if layout_of not in splits:
                    splits[layout_of] = _ranks_split_over(gradient)
                shards = splits[layout_of]
            sampled = id(parameter) not in layout.embedding_param_ids
            yield Gradient(local, layout.world_size / shards, sampled)


def _check(parameter: Any, layout: Layout) -> None:
    gradient = parameter.grad
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
    # Not is_shard(): it is False for FSDP2's placement of a tensor that tensor parallelism splits too.
    split = [i for i, place in enumerate(gradient.placements) if not place.is_replicate()]
    return math.prod(gradient.device_mesh.size(i) for i in split)
