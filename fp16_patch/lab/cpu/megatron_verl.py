# SPDX-License-Identifier: Apache-2.0
"""verl's MegatronEngine: the threads in which Megatron's "cuda" is the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch


def _where_cuda_means_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from fp16_patch.lab.cpu import cuda_to_cpu

        cuda_to_cpu.for_this_thread()
        original(self, *args, **kwargs)

    return __init__


PATCHES = (
    Patch(
        name="cpu-megatron-cuda-means-cpu",
        target="verl.workers.engine.megatron.transformer_impl:MegatronEngine.__init__",
        kind="wrap",
        distribution="verl",
        versions=">=0.9.1,<0.10",
        process="trainer rank",
        reason='megatron-core makes its small tensors on device="cuda" and goes by type names such as '
        "torch.cuda.HalfTensor. From the first engine on, torch takes the one word for the other in the thread of "
        "the engine.",
        upstream="Megatron has no device interface; not reported",
        remove_when="Megatron asks for its device",
        make=_where_cuda_means_cpu,
        parameters=("self",),
    ),
)
