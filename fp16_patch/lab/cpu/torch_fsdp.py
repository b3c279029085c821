# SPDX-License-Identifier: Apache-2.0
"""Run FSDP without an accelerator: process group, loss scaler, weight broadcast, pinned memory."""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import TORCH_RANK, VERL_RANK
from fp16_patch.patching import replace, wrap

GLOO = "cpu:gloo"


@wrap(
    "verl.utils.distributed:initialize_global_process_group_ray",
    **VERL_RANK,
    reason='verl passes "cpu:gloo,{device}:{backend}", which names cpu twice on this platform. torch refuses that.',
    upstream="https://github.com/verl-project/verl/pull/3405 (open)",
    remove_when="verl's process group backend is right for device cpu",
)
def _cpu_process_group(original: Any, timeout_second: int | None = None, backend: str | None = None) -> Any:
    return original(timeout_second, backend or GLOO)


@wrap(
    "torch.distributed.fsdp.sharded_grad_scaler:ShardedGradScaler.__init__",
    **TORCH_RANK,
    reason="verl creates the scaler without a device. With the default, cuda, it disables itself if there is no CUDA: "
    "gradients would not be scaled, with only a warning. The default becomes cpu. An explicit device is kept.",
    upstream="verl passes no device (verl/workers/engine/fsdp/transformer_impl.py); not reported",
    remove_when="verl passes its device to ShardedGradScaler",
)
def _cpu_grad_scaler_device(original: Any, self: Any, device: str = "cpu", *args: Any, **kwargs: Any) -> None:
    original(self, device, *args, **kwargs)


@replace(
    "torch.distributed.fsdp._init_utils:_check_module_states_for_sync_module_states",
    **TORCH_RANK,
    reason="FSDP1 refuses to broadcast weights that are not on an accelerator. gloo broadcasts them from main memory.",
    upstream="FSDP1 is in maintenance; not reported",
    remove_when="verl drops FSDP1",
    fingerprint="036e7f21b1ee2505",
)
def _cpu_fsdp1_sync_module_states(module_states: list[Any]) -> None: ...


@wrap(
    "torch.distributed.fsdp._init_utils:_init_core_state",
    also_bound=("torch.distributed.fsdp.fully_sharded_data_parallel:_init_core_state",),
    **TORCH_RANK,
    reason="The reference model is created with CPUOffload, which pins memory. Pinning needs an accelerator, and the "
    "parameters are already in main memory.",
    upstream="FSDP1 is in maintenance; not reported",
    remove_when="verl drops FSDP1",
)
def _cpu_fsdp1_no_offload(
    original: Any,
    state: Any,
    sharding_strategy: Any,
    mixed_precision: Any,
    cpu_offload: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    return original(state, sharding_strategy, mixed_precision, None, *args, **kwargs)


@wrap(
    "verl.utils.fsdp_utils:apply_fsdp2",
    **VERL_RANK,
    reason="The reference model is created with CPUOffloadPolicy(pin_memory=True). Pinning needs an accelerator.",
    upstream="https://github.com/verl-project/verl/pull/3405 (open)",
    remove_when="verl pins memory only if there is an accelerator",
)
def _cpu_fsdp2_no_pinned_memory(original: Any, model: Any, fsdp_kwargs: dict[str, Any], config: Any) -> Any:
    if fsdp_kwargs.get("offload_policy") is not None:
        fsdp_kwargs["offload_policy"].pin_memory = False
    return original(model, fsdp_kwargs, config)
