# SPDX-License-Identifier: Apache-2.0
"""Patch verl's FSDP engine (FSDP1 and FSDP2): its loss scaler, its update and its merged LoRA weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fp16_patch.engines.fsdp.precision import describe_fsdp
from fp16_patch.frameworks.verl.loss_check import step_without_scale
from fp16_patch.frameworks.verl.releases import FSDP_RANK
from fp16_patch.frameworks.verl.state import scaler_of
from fp16_patch.frameworks.verl.trainer import check_built_dtype, record_update
from fp16_patch.frameworks.verl.trainer_fsdp.fp32_modules import build_with_fp32_modules
from fp16_patch.patching import hook, replace, wrap
from fp16_patch.precision import Precision, long_name
from fp16_patch.report.observed_dtypes import record_dtype, recorded_dtypes

_MODULE = "verl.workers.engine.fsdp.transformer_impl"
_OBSERVED: dict[str, Any] = {
    **FSDP_RANK,
    "reason": "the precision report states dtypes seen on live tensors; reads them, changes nothing",
}

Engine = Any  # verl.workers.engine.fsdp.transformer_impl.FSDPEngine, never imported here


@wrap(
    f"{_MODULE}:FSDPEngine._build_fsdp_module",
    name="fsdp-loss-scaler",
    **FSDP_RANK,
    reason="verl hard-codes the scaler (2**16, interval 400) and reads the train dtype from a key that is "
    "not in its YAML; afterwards the settings are the flag's and the dtype is checked. Modules of "
    "fp16_patch.fp32_modules get FP32 units of their own while the model is wrapped",
    upstream="verl workers/engine/fsdp/transformer_impl.py:391-409",
    remove_when="verl makes the scaler's arguments configurable and reads fsdp_config.dtype",
)
def build_scaler(original: Any, self: Engine, module: Any) -> Any:
    """Build with our scaler and with modules in FP32. Check that verl computes in the train dtype."""
    precision = Precision.current()
    wrapped = build_with_fp32_modules(original, self, module, precision.fp32_modules)
    check_built_dtype(self._autocast_dtype)
    if self.scaler is not None:
        from verl.utils.device import get_device_name

        from fp16_patch.engines.fsdp.scaler import FsdpLossScaler

        self.scaler = FsdpLossScaler(precision.loss_scaling, get_device_name(), module=wrapped)
    return wrapped


@replace(
    f"{_MODULE}:FSDPEngine.optimizer_step",
    name="fsdp-optimizer-step",
    **FSDP_RANK,
    maker=True,
    fingerprint="a11850ea3680ba75",
    reason="torch's scaler has no floor: it reaches 0.0 and the optimizer steps on NaN; unscale, inf check, norm "
    "and clip are five passes over the gradients. Ours is bounded, one pass, and returns no norm on a skip; "
    "engines without a scaler run verl's own function, unless a loss is not finite",
    upstream="verl workers/engine/fsdp/transformer_impl.py:785-834",
    remove_when="torch bounds its scaler and verl reports skips",
)
def clip_and_step(original: Any) -> Callable[..., Any]:
    """Unscale, clip and step in one pass. Return the gradient norm, None on a skipped update."""

    def optimizer_step(self: Engine) -> Any:
        from fp16_patch.engines.fsdp import step

        scaler = scaler_of(self)
        if scaler is None:
            return step_without_scale(original, self)
        return record_update(self, step.clip_and_step(scaler, self.optimizer, self.optimizer_config.clip_grad))

    return optimizer_step


@replace(
    f"{_MODULE}:FSDPEngine._merged_lora_per_tensor_param",
    name="merged-lora-dtype",
    **FSDP_RANK,
    fingerprint="a23011a4fb04030c",
    reason="merged-LoRA weights were rounded to BF16 on their way to the rollout, eight times FP16's error; "
    "same stream, rounded once to the rollout's dtype",
    upstream="verl workers/engine/fsdp/transformer_impl.py:1082",
    remove_when="verl sends merged weights uncast or in rollout.dtype",
)
def merged_lora_in_rollout_dtype(self: Engine) -> Iterator[tuple[str, Any]]:
    """Yield merged (base and adapter) weights in the rollout's dtype, rounded once from FP32."""
    import torch
    from torch.distributed.tensor import DTensor
    from verl.utils.device import get_device_id
    from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name, offload_fsdp_model_to_cpu
    from verl.utils.model import convert_weight_keys

    dtype = getattr(torch, long_name(Precision.current().rollout_dtype))
    try:
        # The tensors alias the module's storage, and the context restores the unmerged weights on exit. So each one
        # is copied while the context is open.
        with merged_lora_context(self.module, backup_adapters=True):
            params = normalize_peft_param_name(self.module.state_dict())
            params = convert_weight_keys(params, getattr(self.module, "_fsdp_wrapped_module", self.module))
            for name, param in params.items():
                whole = param.detach()
                if isinstance(param, DTensor):
                    # On one rank this still is the module's storage.
                    whole = param.to(get_device_id(), non_blocking=True).full_tensor()
                yield name, whole.to(dtype if whole.is_floating_point() else whole.dtype, copy=True)
    finally:
        if self._is_offload_param:
            offload_fsdp_model_to_cpu(self.module)


@hook(f"{_MODULE}:FSDPEngineWithValueHead.prepare_model_outputs", name="observe-values", **_OBSERVED)
@hook(f"{_MODULE}:FSDPEngineWithLMHead.prepare_model_outputs", name="observe-logits", **_OBSERVED)
def prepare_model_outputs(
    original: Any, self: Engine, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
) -> Any:
    """Record the dtypes of logits (or values) and log-probs as they leave the model."""
    result = original(self, output, output_args, micro_batch, logits_processor_func)
    logits = getattr(output, "logits", None)
    for name, tensor in {"logits": logits, **result}.items():
        if name in ("logits", "log_probs", "values") and tensor is not None:
            record_dtype(self, name, tensor.dtype)
    return result


def describe_engine(engine: Engine) -> dict[str, str]:
    """Return the precision rows of one live FSDP engine: its dtypes in force, and those recorded."""
    rows = describe_fsdp(
        engine.module,
        engine.optimizer,
        engine.scaler,
        autocast=engine._autocast_dtype,
        defer_sync=bool(engine.engine_config.use_no_sync_for_gradient_accumulation),
    )
    if engine.optimizer is None:
        for name in ("gradient_reduction", "gradient_accumulation", "optimizer_state", "loss_scale"):
            rows.pop(name)
    return rows | recorded_dtypes(engine)
