# SPDX-License-Identifier: Apache-2.0
"""What is so in a process of verl with Megatron on the platform. Run by ``test_cpu_megatron.py``; prints JSON."""

from __future__ import annotations

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import torch
import verl  # noqa: F401  # activates the platform, as in every process of a run

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu import cuda_to_cpu, torch_cuda
from fp16_patch.lab.cpu.plan import MEGATRON_PATCHES
from fp16_patch.patching import status


def ledger() -> dict[str, str]:
    """Every patch, after the imports of a trainer rank; what refuses to fit ends its import."""
    before = torch.cuda.synchronize
    importlib.import_module("verl.workers.engine.megatron.transformer_impl")
    importlib.import_module("verl.models.mcore.bridge")
    assert torch.cuda.synchronize is not before, "torch.cuda answers once Megatron is there, and not before"
    found = {entry.name: f"{entry.outcome} {entry.message}".strip() for entry in status().entries}
    patches = (*MEGATRON_PATCHES, *torch_cuda.MEGATRON_PATCHES)
    return {patch.name: found.get(patch.name, "not in the ledger") for patch in patches}


def transformer_engine() -> dict[str, Any]:
    from megatron.bridge.peft import lora_layers
    from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER

    try:
        lora_layers.te.Linear(1, 1)
        said = "nothing"
    except Fp16PatchError as error:
        said = str(error)
    return {
        "left behind": [name for name in sys.modules if name.partition(".")[0] == "transformer_engine"],
        "found": find_spec("transformer_engine") is not None,
        "torch's Adam": USING_PYTORCH_OPTIMIZER,
        "said": said,
    }


def streams() -> dict[str, Any]:
    stream, event = torch.cuda.Stream(), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        stream.record_event(event).synchronize()
    return {"a class": isinstance(torch.cuda.Stream, type), "done": stream.query() and event.query()}


def random_states() -> dict[str, bool]:
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    torch.manual_seed(1)
    tracker = CudaRNGStatesTracker()
    tracker.add("seven", 7)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(7))
    outside = torch.rand(1, generator=torch.Generator().manual_seed(1))
    with tracker.fork("seven"):
        inside = torch.rand(2)
    return {"its own": torch.equal(inside, expected), "put back": torch.equal(torch.rand(1), outside)}


def cuda() -> dict[str, Any]:
    """Before and after this thread takes the one word for the other, and in another thread."""

    def made() -> list[str]:
        found = []
        for make in (
            lambda: torch.tensor([1.0], device="cuda"),
            lambda: torch.zeros(1, device=torch.device("cuda", 0)),
            lambda: torch.zeros(1).to("cuda:0"),
            lambda: torch.nn.Linear(1, 1).cuda().weight,
        ):
            try:
                found.append(str(make().device))
            except (AssertionError, RuntimeError):
                found.append("error")
        return found

    before, kind = made(), torch.zeros(1).half().type()
    cuda_to_cpu.enable_in_thread()
    with ThreadPoolExecutor(1) as other:
        elsewhere = other.submit(made).result()
    return {
        "before": before,
        "after": made(),
        "elsewhere": elsewhere,
        "types": [kind, torch.zeros(1).half().type()],
        "available": torch.cuda.is_available(),
    }


def router() -> dict[str, Any]:
    from megatron.core.transformer.moe.router import router_gating_linear

    tokens, weight = (torch.randn(shape, 8, dtype=torch.float16).requires_grad_() for shape in (5, 4))
    logits = router_gating_linear(tokens, weight, None, torch.float32)
    logits.sum().backward()
    return {
        "exact": torch.equal(logits, tokens.float() @ weight.float().t()),
        "logits": str(logits.dtype),
        "gradients": sorted({str(tokens.grad.dtype), str(weight.grad.dtype)}),
    }


if __name__ == "__main__":
    facts = (ledger, transformer_engine, streams, random_states, cuda, router)
    json.dump({fact.__name__: fact() for fact in facts}, sys.stdout)
