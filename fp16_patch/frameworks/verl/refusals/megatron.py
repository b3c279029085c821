# SPDX-License-Identifier: Apache-2.0
"""What verl's Megatron engine cannot keep in the chosen precision: refused before any rank starts.

Line numbers are verl 0.9.1's and megatron-core 0.16's.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig

from fp16_patch.engines.megatron import optimizer_choice
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.keys import refusal, value_of
from fp16_patch.frameworks.verl.config.megatron import sections
from fp16_patch.frameworks.verl.refusals import resume
from fp16_patch.frameworks.verl.refusals.megatron_installation import installation_problems
from fp16_patch.precision import Precision, short_name

_OWN_FSDP = "Megatron's own FSDP has a gradient buffer and a scaler path of its own"
_RAISES = "it raises at the first overflow, before the update can be skipped (distributed_data_parallel_config.py)"
_ONE_OPTIMIZER = "the model and its optimizer must both be sharded: ranks drift apart silently where one is not"

ENGINE: dict[str, tuple[tuple[Any, ...], str]] = {
    "vanilla_mbridge": ((False,), "the deprecated mbridge has not been proven; Megatron-Bridge has"),
    "use_mbridge": ((True,), "weights that leave another way than through Megatron-Bridge have not been proven"),
    "use_megatron_fsdp": ((False,), _OWN_FSDP),
    "override_ddp_config.use_megatron_fsdp": ((False, None), _OWN_FSDP),
    "use_distributed_optimizer": ((True,), "verl's weight export breaks without it (utils/megatron_utils.py:827)"),
    "override_ddp_config.use_distributed_optimizer": ((True, None), _ONE_OPTIMIZER),
    "qat.enable": ((False, None), "quantization-aware training has its own dtypes"),
    "override_ddp_config.check_for_nan_in_grad": ((False, None), _RAISES),
    "override_ddp_config.check_for_large_grads": ((False, None), _RAISES),
    "override_ddp_config.grad_reduce_in_fp32": ((True, None), "gradients of micro-batches would be summed in FP16"),
}
"""Key under ``megatron`` -> values that may stand, and why no other."""

DTYPES_OF_THE_MODEL = ("params_dtype", "pipeline_dtype", "autocast_dtype", "fp16", "bf16", "fp8", "fp4")
DTYPES_OF_THE_OPTIMIZER = ("params_dtype", "fp16", "bf16", "loss_scale", "fp8_recipe", "optimizer_cpu_offload")
_ADAM_ONLY = "in FP16 only Megatron's Adam has been proven; Muon and its like refuse FP16 themselves"
OVERRIDES_OF_THE_OPTIMIZER: dict[str, tuple[Any, str]] = {
    "optimizer": ("adam", _ADAM_ONLY),
    "use_distributed_optimizer": (True, _ONE_OPTIMIZER),
}
"""Key under ``override_optimizer_config`` -> the value that may stand, and why no other."""
HARMLESS = {"fp16": True, "bf16": False, "fp8": False, "optimizer_cpu_offload": False}
"""Of these, what says no more than the flag does."""
STATE_DTYPES = ("main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")


def unsupported(config: DictConfig, precision: Precision, critic: bool) -> Iterator[Fp16PatchError]:
    """Every setting of the Megatron engines that the flag cannot honour. ``critic``: whether the run has one."""
    engines = {role: section for role, section in sections(config) if critic or role != "critic"}
    if engines:
        yield from installation_problems()
    for role, section in engines.items():
        yield from _engine(config, f"{section}.megatron", trains=role != "reference")
        if role != "reference" and precision.train_dtype == "fp16":
            yield from _optimizer(config, f"{section}.optim")
    if engines and precision.train_dtype == "fp16":
        yield from resume.of_other_trainers(config)
    for pattern in precision.fp32_modules if engines else ():
        if not fnmatchcase("mlp.router", f"*{pattern.strip('*')}*"):
            why = "Megatron keeps all weights of a model in one buffer of its dtype; its router alone can be FP32"
            yield refusal("fp16_patch.fp32_modules", pattern, why, "*router*", "remove it, or train with FSDP")


def _engine(config: DictConfig, path: str, trains: bool) -> Iterator[Fp16PatchError]:
    for name, (allowed, why) in ENGINE.items():
        value = value_of(config, f"{path}.{name}")
        if value not in allowed and (trains or not name.startswith("override_ddp")):
            yield refusal(f"{path}.{name}", value, why, str(allowed[0]), f"set {path}.{name}={allowed[0]}")
    overrides = value_of(config, f"{path}.override_transformer_config") or {}
    for name in DTYPES_OF_THE_MODEL:
        if overrides.get(name) not in (None, HARMLESS.get(name)):
            key, why = f"{path}.override_transformer_config.{name}", "the flag sets the dtype of the model"
            yield refusal(key, overrides[name], why, "unset", f"remove {key}")


def _optimizer(config: DictConfig, path: str) -> Iterator[Fp16PatchError]:
    name = str(value_of(config, f"{path}.optimizer")).lower()
    if name != "adam":
        yield refusal(f"{path}.optimizer", name, _ADAM_ONLY, "adam", f"set {path}.optimizer=adam")
    path = f"{path}.override_optimizer_config"
    overrides = value_of(config, path) or {}
    for name, (allowed, why) in OVERRIDES_OF_THE_OPTIMIZER.items():
        if overrides.get(name) not in (None, allowed):
            yield refusal(f"{path}.{name}", overrides[name], why, str(allowed), f"remove {path}.{name}")
    for name in DTYPES_OF_THE_OPTIMIZER:
        if overrides.get(name) not in (None, HARMLESS.get(name)):
            why = (
                "a fixed loss scale is no dynamic one"
                if name == "loss_scale"
                else "the flag sets it, or cannot prove it"
            )
            yield refusal(f"{path}.{name}", overrides[name], why, "unset", f"remove {path}.{name}")
    for name in STATE_DTYPES:
        if overrides.get(name) is not None and short_name(f"{path}.{name}", overrides[name]) != "fp32":
            why = "in half precision it loses small updates, or the gradients of micro-batches"
            yield refusal(f"{path}.{name}", overrides[name], why, "fp32", f"remove {path}.{name}")
    if overrides.get("use_precision_aware_optimizer") and not optimizer_choice.choose(None).precision_aware:
        key = f"{path}.use_precision_aware_optimizer"
        why = "its FusedAdam is TransformerEngine's, which is not installed"
        yield refusal(key, True, why, "False", f"install transformer-engine on every node, or remove {key}")
