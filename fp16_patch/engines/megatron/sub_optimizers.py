# SPDX-License-Identifier: Apache-2.0
"""List the sub-optimizers of a Megatron optimizer (dense parameters, experts, ...), with parameters and scaler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fp16_patch.errors import Fp16PatchError

Optimizer = Any  # megatron.core.optimizer.MegatronOptimizer, never imported here

LOSS_SCALER = "_fp16_patch_loss_scaler"  # attribute of an optimizer


def get_loss_scaler(optimizer: Optimizer) -> Any:
    """Return the optimizer's ``ChainedLossScaler``; None if it has none (BF16, FP32)."""
    return getattr(optimizer, LOSS_SCALER, None)


def require_loss_scaler(optimizer: Optimizer) -> Any:
    """Return the optimizer's ``ChainedLossScaler``; raise :class:`Fp16PatchError` if it has none."""
    if (scaler := get_loss_scaler(optimizer)) is None:
        raise Fp16PatchError(
            "this Megatron optimizer does not have this package's loss scaler",
            code="loss-scaling-missing",
            allowed="an optimizer that install_loss_scaler() was called with",
            next_step="call fp16_patch.engines.megatron.scaler.install_loss_scaler where it is built",
        )
    return scaler


def list_sub_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Return the sub-optimizers in the order in which they step; ``[optimizer]`` if it is not chained."""
    if not hasattr(optimizer, "chained_optimizers"):
        return [optimizer]
    return [part for chained in optimizer.chained_optimizers for part in list_sub_optimizers(chained)]


def main_parameters(part: Optimizer) -> Iterator[tuple[Any, Any]]:
    """Yield (the model's parameter, what the sub-optimizer holds of it): an FP32 copy, or this rank's piece of one.

    The second is None if this rank holds nothing of the parameter.
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


def main_gradient(part: Optimizer, main: Any) -> Any:
    """Return the gradient of ``main``, which the sub-optimizer holds, after ``prepare_grads``; None without one."""
    return getattr(main, "decoupled_grad" if is_precision_aware(part) else "grad", None)


def is_precision_aware(part: Optimizer) -> bool:
    """Return whether it steps on the model's half-precision shards, with FP32 in TransformerEngine's FusedAdam."""
    return bool(part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8)
