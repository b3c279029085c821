# SPDX-License-Identifier: Apache-2.0
"""Run the code of megatron-core that uses CUDA's random states or TransformerEngine's kernels without a check."""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import MEGATRON_CORE_RANK
from fp16_patch.patching import replace, wrap


@replace(
    "megatron.core.tensor_parallel.random:_set_cuda_rng_state",
    **MEGATRON_CORE_RANK,
    reason="Megatron sets the state of CUDA's generator. Without a GPU torch queues each call, with a stack trace, "
    "and never makes it. On this platform everything draws from the CPU's generator.",
    upstream="Megatron has no device interface; not reported",
    remove_when="Megatron's random states have a device",
    fingerprint="dea947ca0b7dc92b",
)
def _cpu_megatron_random_state(new_state: Any, device: int = -1, graph_safe: bool = False) -> None:
    import torch

    torch.set_rng_state(new_state)


@wrap(
    "megatron.core.transformer.dot_product_attention:DotProductAttention.forward",
    **MEGATRON_CORE_RANK,
    reason="verl passes a padding mask with one row per sequence. TransformerEngine's causal attention ignores it; "
    "megatron-core's takes it for a mask of every pair of tokens. Padding is on the right, so causal attention "
    "already hides it from every token that counts.",
    upstream="verl/models/mcore/model_forward.py is written for TransformerEngine; not reported",
    remove_when="verl passes no mask to causal attention",
)
def _cpu_megatron_causal_mask(
    original: Any, self: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any
) -> Any:
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = None
    return original(self, query, key, value, attention_mask, *args, **kwargs)


@wrap(
    "megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu",
    also_bound=("megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",),
    **MEGATRON_CORE_RANK,
    reason="The function returns a tensor that is already on the CPU unchanged, even with as_numpy=True. all_to_all "
    "needs the numbers.",
    upstream="not reported",
    remove_when="maybe_move_tensor_to_cpu honours as_numpy for tensors on the CPU",
)
def _cpu_megatron_expert_splits(original: Any, tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    import torch

    moved = original(tensor, as_numpy, record_stream)
    return moved.numpy() if as_numpy and torch.is_tensor(moved) else moved


@replace(
    "megatron.core.transformer.moe.moe_utils:router_gating_linear",
    also_bound=("megatron.core.transformer.moe.router:router_gating_linear",),
    **MEGATRON_CORE_RANK,
    reason="The function tests whether TransformerEngine's product is None. Without TransformerEngine the name does "
    "not exist, and every MoE model ends in a NameError. torch's linear in the same dtype has the same gradients.",
    upstream="not reported",
    remove_when="moe_utils sets te_general_gemm to None where TransformerEngine is missing",
    fingerprint="12d79f770ec7e053",
)
def _cpu_megatron_router_product(inp: Any, weight: Any, bias: Any, router_dtype: Any) -> Any:
    import torch

    parts = (None if part is None else part.to(router_dtype) for part in (inp, weight, bias))
    return torch.nn.functional.linear(*parts)
