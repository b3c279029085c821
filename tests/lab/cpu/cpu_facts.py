# SPDX-License-Identifier: Apache-2.0
"""What is so in a process in which verl has activated the platform. Run by ``test_cpu_verl.py``; prints JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import torch
import verl  # noqa: F401  # activates the platform, as in every process of a run
from transformers import Qwen2Config, Qwen2ForCausalLM

from fp16_patch.lab.cpu.plan import PATCHES
from fp16_patch.patching import status

TINY = Qwen2Config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_labels=1,
)


def ledger() -> dict[str, str]:
    for patch in PATCHES:
        importlib.import_module(patch.target.partition(":")[0])
    return {entry.name: f"{entry.outcome} {entry.message}".strip() for entry in status().entries}


def platform() -> dict[str, Any]:
    from verl.plugin.platform import get_platform

    here = get_platform()
    device = here.current_device()
    module = here.device_module
    state = module.get_rng_state()
    first = torch.rand(3)
    module.set_rng_state(state)
    return {
        "name": here.device_name,
        "device of a tensor": str(torch.zeros(1).to(device).device),
        "device with index": f"{here.device_name}:{device}",
        "rng restored": torch.equal(first, torch.rand(3)),
        "memory seen": module.mem_get_info()[1] > module.memory_allocated() > 0,
    }


def vllm_found() -> dict[str, Any]:
    from verl.utils.vllm.utils import is_version_ge
    from vllm.platforms import current_platform

    return {
        "version": metadata.version("vllm"),
        "listed": sorted({d.metadata["Name"] for d in metadata.distributions() if "vllm" in d.metadata["Name"]}),
        "verl takes it for 0.25 or later": is_version_ge(minver="0.25.0"),
        "platform": current_platform.device_type,
    }


def log_probs() -> dict[str, Any]:
    from verl.utils import torch_functional

    found = {}
    for dtype in (torch.bfloat16, torch.float16):
        logits = torch.randn(2, 7, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
        labels = torch.arange(14).view(2, 7)
        exact = torch.log_softmax(logits.double(), -1)
        with torch.autocast("cpu", dtype=dtype):
            log_probs = torch_functional.logprobs_from_logits(logits, labels)
            entropy = torch_functional.entropy_from_logits(logits)
        wrong = (log_probs - exact.gather(-1, labels.unsqueeze(-1)).squeeze(-1)).abs().max().item()
        wrong_entropy = (entropy + (exact.exp() * exact).sum(-1)).abs().max().item()
        found[str(dtype)] = [str(log_probs.dtype), wrong, str(entropy.dtype), wrong_entropy]
    return found


def fsdp() -> dict[str, Any]:
    """As verl does it, on one rank: process group, scaler, FSDP1 with sync_module_states, FSDP2 with offload."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
    from verl.utils import distributed, fsdp_utils
    from verl.utils.device import get_device_id
    from verl.workers.engine.fsdp.utils import create_device_mesh

    with tempfile.NamedTemporaryFile() as store:
        os.environ["DIST_INIT_METHOD"] = f"file://{store.name}.store"
        distributed.initialize_global_process_group_ray()
        mesh = create_device_mesh(world_size=1, fsdp_size=-1)

        one = FullyShardedDataParallel(
            torch.nn.Linear(8, 8), device_id=get_device_id(), sync_module_states=True, device_mesh=mesh
        )
        one(torch.ones(1, 8)).sum().backward()

        two = Qwen2ForCausalLM(TINY)
        fsdp_utils.apply_fsdp2(two, {"mesh": mesh, "offload_policy": fsdp_utils.CPUOffloadPolicy(pin_memory=True)}, {})
        two(torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()

        found = {
            "backend": torch.distributed.get_backend(),
            "scaler of no device": ShardedGradScaler(growth_interval=400).is_enabled(),
            "scaler of device cuda": ShardedGradScaler("cuda").is_enabled(),
            "FSDP1 gradient": next(one.parameters()).grad is not None,
            "FSDP2 gradient": next(two.parameters()).grad is not None,
        }
        torch.distributed.destroy_process_group()
    return found


def weight_update_in_vllm() -> dict[str, float]:
    """Pack a linear layer for vLLM's kernels, give it new weights, pack it again."""
    from vllm.model_executor.layers import utils

    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = torch.nn.Linear(64, 32, bias=False, dtype=dtype).requires_grad_(False)
        x = torch.ones(4, 64, dtype=dtype)
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        layer.weight.fill_(0.5)
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        found[str(dtype)] = layer.cpu_linear(x, layer.weight, None).mean().item()
    return found


def lora_names() -> str | None:
    from vllm.model_executor.models.utils import WeightsMapper

    mapper = WeightsMapper(orig_to_new_prefix={"model.": "language_model.model."})
    name: str | None = mapper.get_unstacked_mapper()._map_name("model.layers.0")
    return name


def value_head() -> str:
    from verl.utils.model import load_valuehead_model

    with tempfile.TemporaryDirectory() as folder:
        Qwen2ForCausalLM(TINY).save_pretrained(folder)
        model = load_valuehead_model(folder, torch.float32, TINY, False)
    assert model(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 1)
    return str(model.config._attn_implementation)


def polling() -> list[float]:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    settings = ["sync", {}, None, "drop", {}]
    return [ReplayBuffer(*settings).poll_interval, ReplayBuffer(*settings, poll_interval=3.0).poll_interval]


def sockets() -> list[str]:
    """Where a vLLM worker looks for its weights, without and with a folder of the run's own."""
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    worker: Any = SimpleNamespace(local_rank=0, model_runner=None)
    os.environ.pop("RAY_TMPDIR", None)
    shared = vLLMColocateWorkerExtension._get_zmq_handle(worker)
    os.environ["RAY_TMPDIR"] = "/some/run"
    return [shared, vLLMColocateWorkerExtension._get_zmq_handle(worker)]


if __name__ == "__main__":
    about_verl = (ledger, platform, log_probs, fsdp, value_head, polling, sockets)
    about_vllm = (vllm_found, weight_update_in_vllm, lora_names)
    found: dict[str, Any] = {fact.__name__: fact() for fact in (*about_verl, *about_vllm)}
    found["half products"] = "lab/cpu/matmul.py" in torch._C._dispatch_dump("aten::mm")
    found["engine device"] = os.environ["VERL_ENGINE_DEVICE"]
    json.dump(found, sys.stdout)
