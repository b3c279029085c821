# SPDX-License-Identifier: Apache-2.0
"""Run layers of the installed vLLM outside of an engine, and print what the tests look at as JSON.

``python real_layers.py FILE``. ``FILE`` must not exist; the process group of one rank meets there.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import torch
from transformers import Glm4MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.forward_context import set_forward_context
from vllm.lora.layers import ReplicatedLinearWithLoRA
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.glm4_moe import Glm4MoE

from fp16_patch.engines.vllm.precision import describe_worker

FACTOR = 2.5


def rows(model: torch.nn.Module) -> dict[str, str]:
    """Return the precision report's rows of a worker with this model."""
    runner = SimpleNamespace(model=model, model_config=SimpleNamespace(dtype=torch.float16))
    return describe_worker(SimpleNamespace(model_runner=runner))


def lora_rows() -> dict[str, dict[str, str]]:
    layer = ReplicatedLinearWithLoRA(ReplicatedLinear(64, 64, bias=False, params_dtype=torch.float16))
    layer.create_lora_weights(1, LoRAConfig(max_lora_rank=8, max_loras=1, lora_dtype=torch.bfloat16))
    return {"plain": rows(layer.base_layer), "adapted": rows(layer)}


def moe_gain(settings: VllmConfig) -> dict[str, float]:
    """Return for each dtype how large the output of vLLM's MoE layer of GLM-4 is, relative to Transformers'."""
    config = Glm4MoeConfig(
        hidden_size=64,
        moe_intermediate_size=64,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        routed_scaling_factor=FACTOR,
        n_group=1,
        topk_group=1,
    )
    torch.manual_seed(0)
    exact = Glm4MoeMoE(config).float()
    for parameter in exact.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(5, 64)
    with torch.no_grad():
        wanted, weights, gains = exact(inputs[None])[0], exact.state_dict(), {}
        shared = [weights[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down")]
        for dtype in (torch.bfloat16, torch.float16):
            torch.set_default_dtype(dtype)
            layer = Glm4MoE(config, prefix=f"layer.{dtype}")
            torch.set_default_dtype(torch.float32)
            layer.gate.weight.copy_(weights["gate.weight"])
            layer.gate.e_score_correction_bias.copy_(weights["gate.e_score_correction_bias"])
            layer.shared_experts.gate_up_proj.weight.copy_(torch.cat(shared[:2]))
            layer.shared_experts.down_proj.weight.copy_(shared[2])
            layer.experts.routed_experts.w13_weight.copy_(weights["experts.gate_up_proj"])
            layer.experts.routed_experts.w2_weight.copy_(weights["experts.down_proj"])
            for part in layer.modules():
                method = getattr(part, "quant_method", None)
                if hasattr(method, "process_weights_after_loading"):
                    method.process_weights_after_loading(part)
            with set_forward_context(None, settings, num_tokens=len(inputs)):
                got = layer(inputs.to(dtype)).float()
            gains[str(dtype)] = float((got * wanted).sum() / (wanted * wanted).sum())
    return gains


configuration = VllmConfig()
with set_current_vllm_config(configuration):
    init_distributed_environment(1, 0, f"file://{sys.argv[1]}", 0, "gloo")
    initialize_model_parallel(1, 1, backend="gloo")
    found = {"lora": lora_rows(), "moe_gain": moe_gain(configuration)}
print(json.dumps(found))
