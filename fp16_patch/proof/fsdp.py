# SPDX-License-Identifier: Apache-2.0
"""Read the precision in force off a live FSDP1 or FSDP2 module, its optimizer and its scaler."""

from __future__ import annotations

from typing import Any

from fp16_patch.proof.dtypes import agree, describe


def describe_fsdp(
    module: Any, optimizer: Any | None, scaler: Any | None, *, autocast: Any, defer_sync: bool
) -> dict[str, str]:
    """Rows for the precision report.

    ``module`` is an ``FSDP`` (FSDP1) or an ``FSDPModule`` (FSDP2), ``autocast`` the torch dtype its
    forward runs under, ``defer_sync`` whether micro-batches accumulate without reducing (no_sync).
    The optimizer's state exists after its first step; until then the row says so.
    """
    policies = _policies(module)
    reduce_dtype = agree(reduced for _, reduced, _ in policies)
    return {
        "master_weights": describe(module.parameters()),
        "compute": agree([autocast, *(param for param, _, _ in policies)]),
        "gradient_reduction": reduce_dtype,
        "gradient_accumulation": _accumulation(module, policies, defer_sync),
        "optimizer_state": _optimizer_state(optimizer),
        "loss_scale": _loss_scale(scaler),
    }


def _policies(module: Any) -> list[tuple[Any, Any, int]]:
    """(param dtype, reduce dtype, FSDP version) of every wrapped part. FSDP's None means: the parameter's."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    found = []
    for part in module.modules():
        if isinstance(part, FullyShardedDataParallel):
            policy, version = part.mixed_precision, 1
        elif isinstance(part, FSDPModule):
            policy, version = part._get_fsdp_state()._mp_policy, 2
        else:
            continue
        own = next((p.dtype for p in part.parameters()), None)
        found.append((policy.param_dtype or own, policy.reduce_dtype or policy.param_dtype or own, version))
    return found


def _accumulation(module: Any, policies: list[tuple[Any, Any, int]], defer_sync: bool) -> str:
    if not defer_sync:  # reduced at every micro-batch, added up in the sharded parameter's own dtype
        return agree(p.dtype for p in module.parameters() if p.requires_grad)
    # FSDP2 keeps unsharded gradients in the reduce dtype, FSDP1 in the compute dtype.
    return agree(param if version == 1 else reduced for param, reduced, version in policies)


def _optimizer_state(optimizer: Any | None) -> str:
    if optimizer is None:
        return "none"
    tensors = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step" and hasattr(value, "dtype")
    ]
    return describe(tensors, none="created at the first update")


def _loss_scale(scaler: Any | None) -> str:
    if scaler is None or not scaler.is_enabled():
        return "none"
    return f"{scaler.get_scale():g}"
