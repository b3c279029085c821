# SPDX-License-Identifier: Apache-2.0
"""Read the precision in force off live Megatron-core model chunks, their optimizer and its scaler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fp16_patch.proof.dtypes import agree, describe


def describe_megatron(chunks: Sequence[Any], optimizer: Any | None) -> dict[str, str]:
    """Rows for the precision report of this rank. An engine that only evaluates has no row of an optimizer.

    ``chunks`` are the model's virtual pipeline stages, in Megatron's DistributedDataParallel where they train;
    ``optimizer`` is one MegatronOptimizer or a chain of them. ``master_weights`` are what Adam steps on.
    """
    weights = [p for chunk in chunks for p in chunk.parameters() if p.is_floating_point()]
    rows = {"compute": describe(weights)}
    if optimizer is None:
        return rows
    reduced = [buffer.grad_dtype for chunk in chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    parts = list(links(optimizer))
    state = [tensor for part in parts for name, tensor in _state(part) if name != "master_param"]
    scales = {f"{float(part.get_loss_scale()):g}" for part in parts if getattr(part, "grad_scaler", None) is not None}
    return {
        "master_weights": describe(tensor for part in parts for tensor in _master_weights(part)),
        **rows,
        "gradient_reduction": agree(reduced),
        "gradient_accumulation": agree(reduced),  # into the buffer that is reduced
        "optimizer_state": describe(state, none="created at the first update"),
        "loss_scale": ", ".join(sorted(scales)) or "none",
    }


def links(optimizer: Any) -> Iterator[Any]:
    """The optimizers of a chain that hold parameters on this rank; a single one is a chain of one."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(part, "is_stub_optimizer", False):
            yield part


def _master_weights(part: Any) -> Iterator[Any]:
    if _precision_aware(part):  # TransformerEngine's FusedAdam keeps them among its state
        yield from (tensor for name, tensor in _state(part) if name == "master_param")
        return
    # Of the distributed optimizer, and of the plain one.
    for name in (
        "shard_fp32_from_float16_groups",
        "fp32_from_float16_groups",
        "shard_fp32_groups",
        "fp32_from_fp32_groups",
    ):
        for group in getattr(part, name, None) or ():
            yield from (tensor for tensor in group if tensor is not None)


def _state(part: Any) -> Iterator[tuple[str, Any]]:
    for held in part.optimizer.state.values():
        for name, tensor in held.items():
            if name != "step" and hasattr(tensor, "is_floating_point"):
                yield name, tensor


def _precision_aware(part: Any) -> bool:
    return bool(getattr(part.config, "use_precision_aware_optimizer", False))
