# SPDX-License-Identifier: Apache-2.0
"""Read the precision in force from live Megatron-core model chunks, their optimizer and its scaler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fp16_patch.engines.megatron.sub_optimizers import (
    Optimizer,
    is_precision_aware,
    list_sub_optimizers,
    main_parameters,
)
from fp16_patch.report.dtypes import dtype_shares, format_dtypes, state_tensors


def describe_megatron(chunks: Sequence[Any], optimizer: Optimizer | None) -> dict[str, str]:
    """Return this rank's rows of the precision report. An engine that only evaluates has no rows of an optimizer.

    ``chunks`` are the model's virtual pipeline stages, in Megatron's DistributedDataParallel where they train.
    ``master_weights`` are what Adam steps on.
    """
    weights = [p for chunk in chunks for p in chunk.parameters() if p.is_floating_point()]
    rows = {"compute": dtype_shares(weights)}
    if optimizer is None:
        return rows
    reduced = [buffer.grad_dtype for chunk in chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    parts = [part for part in list_sub_optimizers(optimizer) if not part.is_stub_optimizer]
    state = [tensor for part in parts for name, tensor in state_tensors(part.optimizer) if name != "master_param"]
    scales = {f"{float(part.get_loss_scale()):g}" for part in parts if getattr(part, "grad_scaler", None) is not None}
    return {
        "master_weights": dtype_shares(tensor for part in parts for tensor in _master_weights(part)),
        **rows,
        "gradient_reduction": format_dtypes(reduced),
        "gradient_accumulation": format_dtypes(reduced),  # into the buffer that is reduced
        "optimizer_state": dtype_shares(state, none="created at the first update"),
        "loss_scale": ", ".join(sorted(scales)) or "none",
    }


def _master_weights(part: Optimizer) -> Iterator[Any]:
    if is_precision_aware(part):  # TransformerEngine's FusedAdam keeps them among its state
        yield from (tensor for name, tensor in state_tensors(part.optimizer) if name == "master_param")
    else:
        yield from (main for _, main in main_parameters(part) if main is not None)
