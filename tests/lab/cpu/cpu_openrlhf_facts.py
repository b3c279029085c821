# SPDX-License-Identifier: Apache-2.0
"""What is so in a process of OpenRLHF on the platform. Run by ``test_cpu_openrlhf.py``, activated; prints JSON."""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu.gloo import GlooBroadcast
from fp16_patch.lab.cpu.plan import OPENRLHF_PATCHES
from fp16_patch.patching import status

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
kept: list[GlooBroadcast] = []
"""A group that is dropped waits for what it is sending."""


def ledger() -> dict[str, str]:
    """Every patch, after the imports of a trainer rank and of a vLLM worker."""
    importlib.import_module("openrlhf.trainer.ray.ppo_actor")
    for patch in OPENRLHF_PATCHES:
        importlib.import_module(patch.target.partition(":")[0])
    found = {entry.name: f"{entry.outcome} {entry.message}".strip() for entry in status().entries}
    return {patch.name: found.get(patch.name, "not in the ledger") for patch in OPENRLHF_PATCHES}


def torch_cuda() -> dict[str, Any]:
    device = torch.cuda.current_device()
    torch.cuda.set_device(0)
    torch.cuda.synchronize()
    return {
        "available": torch.cuda.is_available(),
        "device of a tensor": str(torch.zeros(1).to(device).device),
        "device with index": str(torch.device(f"cuda:{device}")),
        "stream is done": torch.cuda.current_stream().query(),
    }


def flash_attention() -> dict[str, Any]:
    from openrlhf.models import ring_attn_utils
    from transformers.utils import is_flash_attn_2_available

    try:
        ring_attn_utils.all_gather(torch.zeros(1, 1), None)
        said = "nothing"
    except Fp16PatchError as error:
        said = str(error)
    return {
        "left behind": [name for name in sys.modules if name.startswith("flash_attn")],
        "found": find_spec("flash_attn") is not None or is_flash_attn_2_available(),
        "said": said,
    }


def packing() -> float:
    """OpenRLHF's own actor on answers of several lengths: its log-probs packed, less those of the padded batch."""
    from openrlhf.models import Actor
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    torch.manual_seed(0)
    actor = Actor(AutoModelForCausalLM.from_config(config, attn_implementation="flash_attention_2"))
    tokens = torch.randint(32, (3, 9))
    mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9, [0] * 2 + [1] * 4 + [0] * 3])
    both = []
    for packed in (False, True):
        actor.packing_samples = packed
        with torch.no_grad():
            both.append(actor(tokens, attention_mask=mask, return_logprobs=True) * mask[:, 1:] * mask[:, :-1])
    return float((both[0] - both[1]).abs().max()) if both[0].abs().sum() > 0 else float("nan")


def deepspeed_step() -> dict[str, Any]:
    """A step of a real FP16 engine, with OpenRLHF's own configuration, on a real process group."""
    import deepspeed
    from openrlhf.utils.deepspeed.deepspeed_utils import get_train_ds_config
    from torch.distributed.device_mesh import init_device_mesh

    deepspeed.init_distributed()
    mesh = init_device_mesh("cuda", (1, 1, 1), mesh_dim_names=("dp", "sp", "tp"))  # as OpenRLHF makes it
    adam = {"type": "AdamW", "params": {"lr": 0.1}}
    config = get_train_ds_config(False, False, 2, "fp16", zpg=1, optim_config=adam)
    config |= {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1}
    for key, size in (("reduce_bucket_size", 100), ("sub_group_size", 100)):  # "auto" is for transformers to fill in
        config["zero_optimization"][key] = size
    config["zero_optimization"] = {k: v for k, v in config["zero_optimization"].items() if v != "auto"}
    model = torch.nn.Linear(8, 8)
    engine, optimizer, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    before = model.weight.detach().clone()
    engine.backward(engine(torch.ones(1, 8, dtype=torch.float16)).float().mean())
    engine.step()
    return {
        "weights": str(model.weight.dtype),
        "moved": not torch.equal(before, model.weight),
        "optimizer": type(optimizer.optimizer).__module__,
        "backend": torch.distributed.get_backend(),
        "a sum over the mesh": _all_reduced(mesh["dp"].get_group()),
        "compiled": [str(path) for path in Path(os.environ["TORCH_EXTENSIONS_DIR"]).rglob("*")],
    }


def _all_reduced(group: Any) -> float:
    one = torch.ones(1)
    torch.distributed.all_reduce(one, group=group)
    return one.item()


def weight_update() -> dict[str, list[float]]:
    """OpenRLHF's own receiver, in a worker with a layer that vLLM has packed, gets a weight from a sender."""
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    trainer, receiver = connected()
    found = {}
    for dtype in DTYPES:
        layer = torch.nn.Linear(64, 32, bias=False, dtype=dtype).requires_grad_(False)
        layer.quant_method = method = UnquantizedLinearMethod()
        method.process_weights_after_loading(layer)
        model = torch.nn.Sequential(layer)
        model.load_weights = lambda weights, layer=layer: layer.weight.copy_(weights[0][1])
        worker: Any = SimpleNamespace(
            model_config=SimpleNamespace(dtype=dtype, quantization=None, word_embeddings_untied_by_checkpoint=False),
            model_runner=SimpleNamespace(model=model),
            device=torch.device("cpu"),
            _model_update_with_ray=False,
            _model_update_group=receiver,
        )
        outputs = []
        for value, last in ((0.5, True), (0.25, False), (0.25, True)):
            weight = torch.full((64, 32), value, dtype=dtype).t()  # not contiguous
            trainer.broadcast(weight, src=0, stream=torch.cuda.current_stream())
            WorkerWrap.update_weight(worker, "weight", dtype, weight.shape, empty_cache=last)
            outputs.append(method.apply(layer, torch.ones(4, 64, dtype=dtype)).mean().item())
        found[str(dtype)] = [outputs[0], outputs[2]]
    return found


def moving_average() -> float:
    from openrlhf.utils.deepspeed.deepspeed import DeepspeedStrategy

    strategy: Any = SimpleNamespace(time_steps={"ema": 0}, accumulated_gradient=1, use_dynamic_batch=False, stage=2)
    model, average = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for linear, value in ((model, 1.0), (average, 3.0)):
        torch.nn.init.constant_(linear.weight, value)
    DeepspeedStrategy.moving_average(strategy, model, average, 0.5, "cuda")
    return average.weight.item()


def bit_for_bit() -> bool:
    trainer, receiver = connected()
    sent = torch.tensor([1.0, -0.0, float("nan"), float("inf"), 6e-8]).half()
    arrived = torch.zeros_like(sent)
    trainer.broadcast(sent, src=0)
    receiver.broadcast(arrived, src=0)
    return torch.equal(sent.view(torch.int16), arrived.view(torch.int16))


def seconds_of_a_sender_without_a_receiver() -> float:
    trainer, _receiver = connected()
    kept.append(trainer)
    start = time.monotonic()
    trainer.broadcast(torch.zeros(32 * 2**20), src=0)  # more than sockets hold
    return time.monotonic() - start


def seconds_of_a_trainer_without_a_worker() -> float:
    start = time.monotonic()
    kept.append(GlooBroadcast("127.0.0.1", free_port(), 0, 2))
    return time.monotonic() - start


def connected() -> tuple[GlooBroadcast, GlooBroadcast]:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(GlooBroadcast, "127.0.0.1", port, rank, 2) for rank in (0, 1)]
    return both[0].result(), both[1].result()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(free_port())
    facts = (
        ledger,
        torch_cuda,
        flash_attention,
        packing,
        deepspeed_step,
        weight_update,
        moving_average,
        bit_for_bit,
        seconds_of_a_sender_without_a_receiver,
        seconds_of_a_trainer_without_a_worker,
    )
    found: dict[str, Any] = {fact.__name__: fact() for fact in facts}
    found["half products"] = "lab/cpu/matmul.py" in torch._C._dispatch_dump("aten::mm")
    print(json.dumps(found), flush=True)
    os._exit(0)  # the two senders wait for receivers that never come
