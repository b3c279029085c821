# SPDX-License-Identifier: Apache-2.0
"""This rank's gradients as the parts of a Megatron optimizer hold them, divided by the scale and not clipped yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fp16_patch.engines.megatron.sub_optimizers import Optimizer, gradient_of, parameters_of
from fp16_patch.loss_scaling.gradients import Gradient


def lookups_of(model: Sequence[Any]) -> frozenset[int]:
    """As in :class:`~fp16_patch.loss_scaling.gradients.Layout`: ids of the model's own embedding tables."""
    from megatron.core.tensor_parallel.layers import VocabParallelEmbedding

    parts = (part for chunk in model for part in chunk.modules())
    return frozenset(id(part.weight) for part in parts if isinstance(part, VocabParallelEmbedding))


def health_of(parts: Sequence[Optimizer], governor: Any, lookups: frozenset[int]) -> tuple[float | None, float | None]:
    """Headroom in bits and underflow share, of a sixteenth of the gradients; collective."""
    from fp16_patch.loss_scaling.gradient_statistics import gather_statistics, part_of
    from fp16_patch.loss_scaling.headroom import SLICES

    scale, device = governor.get_scale(), governor.parts[0].scale.device
    slices, updates = governor.health.slices, governor.counts.updates
    looked_at = list(part_of(list(_gradients(parts, lookups)), updates % slices, slices))
    found = gather_statistics(looked_at, device, governor.process_group, offset=updates // SLICES)
    scaled = replace(found, peak=None if found.peak is None else found.peak * scale)
    headroom, share = governor.health.add(scaled, scale)
    return headroom, share


def _gradients(parts: Sequence[Optimizer], lookups: frozenset[int]) -> Iterator[Gradient]:
    for part in parts:
        for parameter, main in parameters_of(part):
            gradient = None if main is None else gradient_of(part, main)
            if gradient is not None:
                yield Gradient(gradient, 1, sampled=id(parameter) not in lookups)
