# SPDX-License-Identifier: Apache-2.0
"""FSDP without an accelerator: process group, loss scaler, the check before weights are broadcast, pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch

GLOO = "cpu:gloo"


def _over_gloo(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize_global_process_group_ray(timeout_second: int | None = None, backend: str | None = None) -> Any:
        return original(timeout_second, backend or GLOO)

    return initialize_global_process_group_ray


def _scaling_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, device: str = "cpu", *args: Any, **kwargs: Any) -> None:
        original(self, device, *args, **kwargs)

    return __init__


def _anywhere(original: Callable[..., Any]) -> Callable[..., Any]:
    def _check_module_states_for_sync_module_states(module_states: list[Any]) -> None:
        """gloo broadcasts what is in main memory."""

    return _check_module_states_for_sync_module_states


def _without_pinning(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_fsdp2(model: Any, fsdp_kwargs: dict[str, Any], config: Any) -> Any:
        if fsdp_kwargs.get("offload_policy") is not None:
            fsdp_kwargs["offload_policy"].pin_memory = False
        return original(model, fsdp_kwargs, config)

    return apply_fsdp2


def _where_they_are(original: Callable[..., Any]) -> Callable[..., Any]:
    def _init_core_state(
        state: Any, sharding_strategy: Any, mixed_precision: Any, cpu_offload: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return original(state, sharding_strategy, mixed_precision, None, *args, **kwargs)

    return _init_core_state


PATCHES = (
    Patch(
        name="cpu-process-group",
        target="verl.utils.distributed:initialize_global_process_group_ray",
        kind="wrap",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="trainer rank",
        reason='verl asks for "cpu:gloo,{device}:{backend}", which here names cpu twice; torch refuses that.',
        upstream="https://github.com/verl-project/verl/pull/3405 (open)",
        remove_when="verl's process group backend is right for device cpu",
        make=_over_gloo,
        parameters=("timeout_second", "backend"),
    ),
    Patch(
        name="cpu-grad-scaler-device",
        target="torch.distributed.fsdp.sharded_grad_scaler:ShardedGradScaler.__init__",
        kind="wrap",
        distribution="torch",
        versions=">=2.13,<2.14",
        process="trainer rank",
        reason="verl builds it without a device; the default, cuda, disables itself without CUDA, so that gradients "
        "would go unscaled with no more than a warning. The default becomes cpu; an explicit device stays.",
        upstream="verl passes no device (verl/workers/engine/fsdp/transformer_impl.py); not reported",
        remove_when="verl passes its device to ShardedGradScaler",
        make=_scaling_on_cpu,
        parameters=("self", "device"),
    ),
    Patch(
        name="cpu-fsdp1-sync-module-states",
        target="torch.distributed.fsdp._init_utils:_check_module_states_for_sync_module_states",
        kind="replace",
        distribution="torch",
        versions=">=2.13,<2.14",
        process="trainer rank",
        reason="FSDP1 refuses to broadcast weights that are not on an accelerator; gloo broadcasts from memory.",
        upstream="FSDP1 is in maintenance; not reported",
        remove_when="verl drops FSDP1",
        make=_anywhere,
        fingerprint="036e7f21b1ee2505",
    ),
    Patch(
        name="cpu-fsdp1-no-offload",
        target="torch.distributed.fsdp._init_utils:_init_core_state",
        also_bound=("torch.distributed.fsdp.fully_sharded_data_parallel:_init_core_state",),
        kind="wrap",
        distribution="torch",
        versions=">=2.13,<2.14",
        process="trainer rank",
        reason="The reference model is built with CPUOffload, which pins memory; pinning needs an accelerator, and the "
        "parameters are in main memory already.",
        upstream="FSDP1 is in maintenance; not reported",
        remove_when="verl drops FSDP1",
        make=_where_they_are,
        parameters=("state", "sharding_strategy", "mixed_precision", "cpu_offload"),
    ),
    Patch(
        name="cpu-fsdp2-no-pinned-memory",
        target="verl.utils.fsdp_utils:apply_fsdp2",
        kind="wrap",
        distribution="verl",
        versions=">=0.9,<0.10",
        process="trainer rank",
        reason="The reference model is built with CPUOffloadPolicy(pin_memory=True); pinning needs an accelerator.",
        upstream="https://github.com/verl-project/verl/pull/3405 (open)",
        remove_when="verl pins memory only where there is an accelerator",
        make=_without_pinning,
        parameters=("model", "fsdp_kwargs", "config"),
    ),
)
