# SPDX-License-Identifier: Apache-2.0
"""Refuse DeepSpeed engines whose FP16 training is not supported. Called when an engine is built."""

from __future__ import annotations

from typing import Any

from fp16_patch.errors import Fp16PatchError

OPTIMIZERS = ("DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3")
"""ZeRO 1, 2 and 3, with or without offload to the CPU. Others have their own steps and scalers."""


def refusals(engine: Any) -> list[Fp16PatchError]:
    """Return why this engine cannot be used; empty if it can, or if it does not train in FP16."""
    if _torch_scaler(engine):
        return [_refusal("torch_autocast.enabled=true", "fp16.enabled=true", "remove the torch_autocast block")]
    if not engine.fp16_enabled():
        return []
    found = []
    optimizer = type(engine.optimizer).__name__
    if optimizer not in OPTIMIZERS:
        what = f"zero_optimization.stage={int(engine.zero_optimization_stage())} with {optimizer}"
        allowed = "ZeRO stage 1, 2 or 3, without ZenFlow, SuperOffload and MiCS"
        found.append(_refusal(what, allowed, "use stage 2 or 3; their other settings may stay"))
    if engine.pipeline_parallelism:
        found.append(_refusal("a PipelineModule", "the whole model on every rank", "do not use pipeline stages"))
    if not engine.dynamic_loss_scale():
        what = f"fp16.loss_scale={engine.loss_scale():g}, a static scale,"
        found.append(_refusal(what, "0, a dynamic scale", "remove it; set fp16_patch.loss_scaling.init_scale"))
    found += _accumulation(engine)
    if engine.fp16_master_weights_and_gradients():
        found.append(_refusal("fp16.fp16_master_weights_and_grads=true", "FP32 master weights", "remove it"))
    if engine.zeropp_loco_param():
        what = "zero_optimization.zeropp_loco_param"
        found.append(_refusal(what, "ZeRO++ without LoCo, whose error buffers follow the scale", "remove it"))
    return found


def _accumulation(engine: Any) -> list[Fp16PatchError]:
    import torch

    in_fp16, stage = engine.get_data_types()[1] == torch.float16, engine.zero_optimization_stage()
    several = engine.gradient_accumulation_steps() > 1 or not engine.managed_gradient_accumulation()
    if in_fp16 and several:
        what = "data_types.grad_accum_dtype=fp16, DeepSpeed's default,"
        return [_refusal(what, "fp32: sums of micro-batches in FP16 lose small gradients", "set it to fp32")]
    if not in_fp16 and stage == 1 and engine.dp_world_size > 1:
        # It reduces a copy in the model's dtype, and steps on this rank's own gradient (stage_1_and_2.py:1148).
        what = "zero_optimization.stage=1 with data_types.grad_accum_dtype=fp32 on several ranks"
        return [_refusal(what, "stage 2 or 3: in stage 1 DeepSpeed then averages no gradients", "use stage 2")]
    if stage < 3 and several and engine.zero_use_cpu_optimizer():
        what = f"zero_optimization.stage={int(stage)} with offload_optimizer and several micro-batches an update"
        next_step = "use stage 3, turn the offload off, or make the micro-batch as large as the batch"
        return [_refusal(what, "stage 3, which accumulates in FP32; here the sum is in FP16", next_step)]
    return []


def _torch_scaler(engine: Any) -> bool:
    holders = ((engine, "torch_autocast_z0_gradscaler"), (engine.optimizer, "torch_autocast_gradscaler"))
    return any(getattr(holder, name, None) is not None for holder, name in holders)


def _refusal(what: str, allowed: str, next_step: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"DeepSpeed: {what} cannot be used in FP16", code="setting-refused", allowed=allowed, next_step=next_step
    )
