# SPDX-License-Identifier: Apache-2.0
"""Print the rows of vLLM workers with and without a real LoRA layer of vLLM, as JSON.

``python lora_layers.py FILE DTYPE``. ``FILE`` must not exist; the process group of one rank meets there.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.lora.layers import ReplicatedLinearWithLoRA
from vllm.model_executor.layers.linear import ReplicatedLinear

from fp16_patch.engines.vllm.precision import describe_worker


def rows(model: torch.nn.Module) -> dict[str, str]:
    runner = SimpleNamespace(model=model, model_config=SimpleNamespace(dtype=torch.float16))
    return describe_worker(SimpleNamespace(model_runner=runner))


file, dtype = sys.argv[1:]
with set_current_vllm_config(VllmConfig()):
    init_distributed_environment(1, 0, f"file://{file}", 0, "gloo")
    initialize_model_parallel(1, 1, backend="gloo")
    layer = ReplicatedLinearWithLoRA(ReplicatedLinear(64, 64, bias=False, params_dtype=torch.float16))
    layer.create_lora_weights(1, LoRAConfig(max_lora_rank=8, max_loras=1, lora_dtype=getattr(torch, dtype)))
print(json.dumps({"plain": rows(layer.base_layer), "adapted": rows(layer)}))
