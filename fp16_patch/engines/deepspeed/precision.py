# SPDX-License-Identifier: Apache-2.0
"""Read the precision in force from a live DeepSpeed engine, its ZeRO optimizer and its scaler."""

from __future__ import annotations

from typing import Any

from fp16_patch.report.dtypes import dtype_shares, format_dtypes, state_tensors


def describe_engine(engine: Any) -> dict[str, str]:
    """Return rows for the precision report. An engine that only evaluates has no rows of an optimizer.

    ``master_weights`` are what the optimizer steps on, ``compute`` the parameters that the model runs with. DeepSpeed
    creates optimizer state before the first step.
    """
    optimizer = engine.optimizer
    computing = [p.dtype for p in engine.module.parameters() if p.is_floating_point()]
    if not hasattr(optimizer, "optimizer"):
        return {"compute": format_dtypes(computing)}
    state = (tensor for _, tensor in state_tensors(optimizer.optimizer))
    scaler = getattr(optimizer, "loss_scaler", None)
    return {
        "master_weights": dtype_shares(_master_weights(optimizer)),
        "compute": format_dtypes(computing),
        "gradient_reduction": format_dtypes([engine.communication_data_type]),
        "gradient_accumulation": format_dtypes([optimizer.gradient_accumulation_dtype]),
        "optimizer_state": dtype_shares(state, none="created at the first update"),
        "loss_scale": f"{scaler.loss_scale:g}" if scaler is not None and scaler.dynamic else "none",
    }


def _master_weights(optimizer: Any) -> list[Any]:
    """Return this rank's partition of each group (ZeRO-1 and 2), or flat groups of partitions (ZeRO-3)."""
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        if groups := getattr(optimizer, name, None):
            return list(groups)
    return [p for group in optimizer.param_groups for p in group["params"]]
