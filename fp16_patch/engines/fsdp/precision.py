# SPDX-License-Identifier: Apache-2.0
"""Read the precision in force from a live FSDP1 or FSDP2 module, its optimizer and its scaler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp16_patch.fp32_modules import Fp32Module, format_names, list_fp32_modules
from fp16_patch.report.dtypes import dtype_shares, format_dtypes, state_tensors


@dataclass(frozen=True)
class Unit:
    """One FSDP unit: the wrapped ``module``, FSDP's ``version`` and the torch dtypes of parameters and reduction."""

    module: Any
    param: Any
    reduce: Any
    version: int


def describe_fsdp(
    module: Any, optimizer: Any | None, scaler: Any | None, *, autocast: Any, defer_sync: bool
) -> dict[str, str]:
    """Return the rows of the precision report.

    ``module`` is an ``FSDP`` (FSDP1) or an ``FSDPModule`` (FSDP2), ``autocast`` the torch dtype its
    forward runs under, ``defer_sync`` whether micro-batches accumulate without reducing (no_sync).
    The optimizer's state exists after its first step; until then the row says so. ``compute`` leaves out the
    modules that were requested in FP32 and are: the row ``fp32_modules`` names them, if there are any.
    """
    units = _units(module)
    fp32_modules = _in_fp32(module, units)
    inside = {part for fp32_module in fp32_modules for part in fp32_module.module.modules()}
    named = {"fp32_modules": format_names(fp32_module.name for fp32_module in fp32_modules)} if fp32_modules else {}
    return {
        "master_weights": dtype_shares(module.parameters()),
        "compute": format_dtypes([autocast, *(unit.param for unit in units if unit.module not in inside)]),
        **named,
        "gradient_reduction": format_dtypes(unit.reduce for unit in units),
        "gradient_accumulation": _accumulation(module, units, defer_sync),
        "optimizer_state": _optimizer_state(optimizer),
        "loss_scale": f"{scaler.get_scale():g}" if scaler is not None and scaler.is_enabled() else "none",
    }


def modules_in_fp32(module: Any) -> list[str]:
    """Return the names of the modules that were requested in FP32 and are."""
    return [fp32_module.name for fp32_module in _in_fp32(module, _units(module))]


def _in_fp32(module: Any, units: list[Unit]) -> list[Fp32Module]:
    """Return the modules requested in FP32 that are FSDP units in FP32, like every unit inside them."""
    import torch

    in_fp32 = {unit.module: (unit.param, unit.reduce) == (torch.float32, torch.float32) for unit in units}
    return [
        fp32_module
        for fp32_module in list_fp32_modules(module)
        if fp32_module.module in in_fp32 and all(in_fp32.get(part, True) for part in fp32_module.module.modules())
    ]


def _units(module: Any) -> list[Unit]:
    """Return every FSDP unit. A dtype of None in FSDP means the parameter's."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    found = []
    for part in module.modules():
        if isinstance(part, FullyShardedDataParallel):
            inner, policy, version = part.module, part.mixed_precision, 1
        elif isinstance(part, FSDPModule):
            inner, policy, version = part, part._get_fsdp_state()._mp_policy, 2
        else:
            continue
        own = next((p.dtype for p in part.parameters()), None)
        reduced = policy.reduce_dtype or policy.param_dtype or own
        found.append(Unit(inner, policy.param_dtype or own, reduced, version))
    return found


def _accumulation(module: Any, units: list[Unit], defer_sync: bool) -> str:
    if not defer_sync:  # reduced at every micro-batch, added up in the sharded parameter's own dtype
        return format_dtypes(p.dtype for p in module.parameters() if p.requires_grad)
    # FSDP2 keeps unsharded gradients in the reduce dtype, FSDP1 in the compute dtype.
    return format_dtypes(unit.param if unit.version == 1 else unit.reduce for unit in units)


def _optimizer_state(optimizer: Any | None) -> str:
    if optimizer is None:
        return "none"
    return dtype_shares((tensor for _, tensor in state_tensors(optimizer)), none="created at the first update")
