# SPDX-License-Identifier: Apache-2.0
"""Gradients of one rank, without a framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Gradient:
    """``local`` is this rank's part (float32, any shape); ``copies`` is the number of ranks that hold the same part."""

    local: torch.Tensor
    copies: float
    sampled: bool = True
    """Whether an exact zero in it means underflow."""


@dataclass(frozen=True)
class Layout:
    """How plain tensors are spread over ranks. DTensors (FSDP2) know their own sharding."""

    world_size: int = 1
    """Ranks that agree on a step."""
    shards: int = 1
    """Ranks that a plain parameter is split over (FSDP1's sharding group); 1 without sharding."""
    embedding_param_ids: frozenset[int] = frozenset()
    """Ids of embedding parameters. A row whose token does not occur has a zero gradient; that is not underflow."""
    names: Mapping[int, str] = field(default_factory=dict, compare=False)
    """Parameter names by id."""


def embedding_param_ids(module: torch.nn.Module) -> frozenset[int]:
    """Return the ids of all parameters of ``module``'s ``torch.nn.Embedding`` layers."""
    layers = (part for part in module.modules() if isinstance(part, torch.nn.Embedding))
    return frozenset(id(parameter) for layer in layers for parameter in layer.parameters(recurse=False))
