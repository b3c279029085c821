# SPDX-License-Identifier: Apache-2.0
"""The optimizers inside a Megatron optimizer, and what each holds: one for dense parameters, one for experts, ..."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Optimizer = Any  # megatron.core.optimizer.MegatronOptimizer, never imported here


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """In the order in which they step; ``[optimizer]`` where it is not chained."""
    if not hasattr(optimizer, "chained_optimizers"):
        return [optimizer]
    return [part for chained in optimizer.chained_optimizers for part in parts_of(chained)]


def parameters_of(part: Optimizer) -> Iterator[tuple[Any, Any]]:
    """(the model's parameter, what the optimizer holds of it): an FP32 copy, or this rank's piece of one.

    None in place of the latter where this rank holds nothing.
    """
    if part.is_stub_optimizer:
        return
    if hasattr(part, "float16_groups"):  # Float16OptimizerWithFloat16Params
        pairs = [(part.float16_groups, part.fp32_from_float16_groups)]
        pairs += [(part.fp32_from_fp32_groups, part.fp32_from_fp32_groups)]
    else:
        pieces = part.shard_float16_groups if is_precision_aware(part) else part.shard_fp32_from_float16_groups
        pairs = [(part.model_float16_groups, pieces), (part.model_fp32_groups, part.shard_fp32_groups)]
    for models, mains in pairs:
        for model_group, main_group in zip(models, mains, strict=True):
            yield from zip(model_group, main_group, strict=True)


def gradient_of(part: Optimizer, main: Any) -> Any:
    """Of what the optimizer holds, after ``prepare_grads``; None without one."""
    return getattr(main, "decoupled_grad" if is_precision_aware(part) else "grad", None)


def is_precision_aware(part: Optimizer) -> bool:
    """Whether it steps on the model's own half-precision shards, their FP32 in TransformerEngine's FusedAdam."""
    return bool(part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8)
