# SPDX-License-Identifier: Apache-2.0
"""Read one rank's gradients from a Megatron optimizer: divided by the scale and not clipped yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fp16_patch.engines.megatron.sub_optimizers import Optimizer, main_gradient, main_parameters
from fp16_patch.loss_scaling.gradients import Gradient


def embedding_param_ids(model: Sequence[Any]) -> frozenset[int]:
    """Return the ids of the weights of Megatron's embedding tables, for :class:`Gradient`'s ``sampled``."""
    from megatron.core.tensor_parallel.layers import VocabParallelEmbedding

    modules = (module for chunk in model for module in chunk.modules())
    return frozenset(id(module.weight) for module in modules if isinstance(module, VocabParallelEmbedding))


def read_gradients(parts: Sequence[Optimizer], embeddings: frozenset[int]) -> Iterator[Gradient]:
    """Yield this rank's gradients of all sub-optimizers ``parts``."""
    for part in parts:
        for parameter, main in main_parameters(part):
            gradient = None if main is None else main_gradient(part, main)
            if gradient is not None:
                yield Gradient(gradient, 1, sampled=id(parameter) not in embeddings)
