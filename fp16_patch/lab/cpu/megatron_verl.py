# SPDX-License-Identifier: Apache-2.0
"""Map "cuda" to the CPU in the threads of verl's MegatronEngine."""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import VERL_MEGATRON
from fp16_patch.patching import ProcessKind, wrap


@wrap(
    "verl.workers.engine.megatron.transformer_impl:MegatronEngine.__init__",
    name="cpu-megatron-cuda-means-cpu",
    release=VERL_MEGATRON,
    processes={ProcessKind.TRAINER_RANK},
    reason='megatron-core creates small tensors on device="cuda" and compares type names such as '
    'torch.cuda.HalfTensor. From the first engine on, torch maps "cuda" to the CPU in the engine\'s thread.',
    upstream="Megatron has no device interface; not reported",
    remove_when="Megatron asks for its device",
)
def _map_cuda_to_cpu(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    from fp16_patch.lab.cpu import cuda_to_cpu

    cuda_to_cpu.enable_in_thread()
    original(self, *args, **kwargs)
