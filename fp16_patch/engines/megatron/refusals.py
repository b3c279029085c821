# SPDX-License-Identifier: Apache-2.0
"""Refuse Megatron optimizers and models whose FP16 training is not supported. Called when they are built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packaging.specifiers import SpecifierSet

from fp16_patch.engines.megatron import releases
from fp16_patch.engines.megatron.sub_optimizers import (
    Optimizer,
    is_precision_aware,
    list_sub_optimizers,
    main_parameters,
)
from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import installed_version

PARTS = ("Float16OptimizerWithFloat16Params", "DistributedOptimizer")
OPTIMIZERS = ("adam", "sgd")
"""Allowed values of OptimizerConfig.optimizer. Megatron itself fails on Muon with FP16, after building the model."""


def refusals(optimizer: Optimizer, model: Sequence[Any]) -> list[Fp16PatchError]:
    """Return one error for each reason why these cannot train in FP16; an empty list if they can."""
    if errors := refused_release():
        return errors
    sharded = {part.config.use_distributed_optimizer for part in list_sub_optimizers(optimizer)}
    found = [error for chunk in model for error in refused_model(chunk.config) + _refused_chunk(chunk, sharded)]
    if not found:  # otherwise a part may hold its parameters in an unknown way
        found = [error for part in list_sub_optimizers(optimizer) for error in _refused_part(part)]
    for chunk in model:
        scales = chunk.config.grad_scale_func
        if scales is not None and getattr(scales, "__self__", None) is not optimizer:
            what = "grad_scale_func of the model's configuration, which is not this optimizer's scale_loss,"
            allowed = "None or optimizer.scale_loss: the loss and the auxiliary losses need one scale"
            found.append(_refusal(what, allowed, "leave it unset"))
    return list({error.what: error for error in found}.values())


def refused_release(name: str = releases.DISTRIBUTION, versions: str = releases.RELEASES) -> list[Fp16PatchError]:
    """Return an error unless a supported release of the package is installed; imports nothing."""
    found, wanted = installed_version([name]), f"{name}{versions}"
    install = f"pip install '{wanted}'"
    if found is None:
        return [Fp16PatchError(f"{name} is not installed", code="not-installed", allowed=wanted, next_step=install)]
    if SpecifierSet(versions).contains(found, prereleases=True):
        return []
    what = f"{name} {found} is installed; fp16-patch was tested with another release"
    next_step = f"{install}, or an fp16-patch release that knows {found}"
    return [Fp16PatchError(what, code="release-not-supported", allowed=wanted, next_step=next_step)]


def refused_optimizer(name: str) -> list[Fp16PatchError]:
    """Return an error if ``OptimizerConfig.optimizer`` is not supported. Call it before anything is built."""
    if name in OPTIMIZERS:
        return []
    return [_refusal(f"optimizer={name}", " or ".join(OPTIMIZERS), "use adam, or train in BF16")]


def refused_model(config: Any) -> list[Fp16PatchError]:
    """Return the errors of a TransformerConfig, before or after the model is built."""
    found = []
    if config.num_moe_experts and config.moe_router_dtype not in ("fp32", "fp64"):
        what = f"moe_router_dtype={config.moe_router_dtype} with num_moe_experts={config.num_moe_experts}"
        allowed = "fp32 or fp64: routers decide by small differences of logits"
        found.append(_refusal(what, allowed, "set moe_router_dtype=fp32"))
    for name in ("fp8", "fp4"):
        if value := getattr(config, name):
            found.append(_refusal(f"{name}={value}", "None: it is not the requested precision", "unset it"))
    if config.experimental_attention_variant == "dsa" and config.dsa_indexer_loss_coeff:
        what = f"dsa_indexer_loss_coeff={config.dsa_indexer_loss_coeff:g}"
        allowed = "0: Megatron never multiplies the indexer's loss by the loss scale, but divides its gradient by it"
        found.append(_refusal(what, allowed, "unset it, or train in BF16"))
    return found


def _refused_part(part: Optimizer) -> list[Fp16PatchError]:
    kind = type(part).__name__
    if kind not in PARTS:
        return [_refusal(f"{kind} as an optimizer", " or ".join(PARTS), "use adam, with fp16=True in OptimizerConfig")]
    found = refused_optimizer(part.config.optimizer)
    if not part.config.fp16:
        return [*found, _refusal("fp16=False in OptimizerConfig", "True", "set it, as in the model's configuration")]
    if type(part.grad_scaler).__name__ not in ("DynamicGradScaler", "SubOptimizerScaler"):
        what = f"loss_scale={part.config.loss_scale}, a static scale,"
        found.append(_refusal(what, "None, a dynamic one", "unset it; set fp16_patch.loss_scaling.init_scale"))
    for parameter, main in main_parameters(part):
        accumulated = getattr(getattr(parameter, "main_grad", None), "dtype", None)
        for what, dtype in (("gradients accumulated", accumulated), ("main parameters", _main_dtype(part, main))):
            if dtype is not None and str(dtype) != "torch.float32":
                next_step = "grad_reduce_in_fp32=True in DistributedDataParallelConfig; main_params_dtype is float32"
                found.append(_refusal(f"{what} in {dtype}", "torch.float32", next_step))
    return found


def _main_dtype(part: Optimizer, main: Any) -> Any:
    """Return the dtype of ``main``; the configured one if the inner optimizer keeps it (precision-aware)."""
    if main is None or is_precision_aware(part):
        return part.config.main_params_dtype
    return main.dtype


def _refused_chunk(chunk: Any, sharded: set[bool]) -> list[Fp16PatchError]:
    """Return the errors of one chunk. ``sharded`` holds ``use_distributed_optimizer`` of all sub-optimizers."""
    config = chunk.ddp_config
    if config.use_megatron_fsdp:
        return [_refusal("use_megatron_fsdp=True", "False", "use the distributed optimizer")]
    found = []
    if sharded != {config.use_distributed_optimizer}:
        theirs = ", ".join(map(str, sorted(sharded)))
        what = f"use_distributed_optimizer={theirs} in OptimizerConfig and {config.use_distributed_optimizer} in"
        allowed = "one value in both: each rank would update its own gradients only, and ranks drift apart silently"
        found.append(_refusal(f"{what} DistributedDataParallelConfig", allowed, "set both to True"))
    for name in ("check_for_nan_in_grad", "check_for_large_grads"):
        if getattr(config, name):
            what = f"{name}=True in DistributedDataParallelConfig"
            found.append(_refusal(what, "False: it ends the run at the first overflow", "unset it"))
    return found


def _refusal(what: str, allowed: str, next_step: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"Megatron: {what} cannot be used in FP16", code="setting-refused", allowed=allowed, next_step=next_step
    )
