# SPDX-License-Identifier: Apache-2.0
"""Keep the weights of vLLM's CPU backend updatable.

vLLM repacks each weight for its CPU kernels while loading. That suits serving, but in reinforcement learning new
weights arrive every step. verl calls ``process_weights_after_loading`` again after each update, and
``weight_update.py`` does so for OpenRLHF. These patches keep what that call needs to repack.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import VLLM_WORKER
from fp16_patch.patching import add, wrap


@wrap(
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
    **VLLM_WORKER,
    reason="vLLM packs each linear weight and frees the original, so the first weight update fails and the worker "
    "dies. Keeping the originals costs the memory of one more copy of the weights.",
    upstream="not reported; the CPU backend is written for serving",
    remove_when="vLLM's CPU backend supports weight updates",
)
def _vllm_cpu_keep_linear_weights(original: Any, layer: Any, remove_weight: bool) -> None:
    original(layer, remove_weight=False)


@wrap(
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:UnquantizedFusedMoEMethod._setup_kernel",
    **VLLM_WORKER,
    reason="vLLM packs experts at the first load only. After a weight update the kernel reads unpacked weights as "
    "packed ones, and its results are wrong without an error.",
    upstream="not reported; on GPUs the same symptom was https://github.com/vllm-project/vllm/issues/42821",
    remove_when="_setup_kernel lets the experts process their weights on updates too",
)
def _vllm_cpu_repack_experts(original: Any, self: Any, layer: Any, w13: Any, w2: Any) -> None:
    is_weight_update = self.moe_kernel is not None
    original(self, layer, w13, w2)
    if is_weight_update:
        self.moe_kernel.fused_experts.process_weights_after_loading(layer)


@add(
    "vllm.model_executor.models.utils:WeightsMapper.get_unstacked_mapper",
    name="vllm-weights-mapper-name",
    **VLLM_WORKER,
    reason="verl 0.9 loads LoRA adapters with get_unstacked_mapper, which vLLM has renamed to get_rename_mapper.",
    upstream="verl/utils/vllm/utils.py; not reported",
    remove_when="verl asks for get_rename_mapper",
)
def get_unstacked_mapper(self: Any) -> Any:
    """Return the mapper under its new name."""
    return self.get_rename_mapper()


PATCHES = (_vllm_cpu_keep_linear_weights, _vllm_cpu_repack_experts)
VERL_PATCHES = (*PATCHES, get_unstacked_mapper)
