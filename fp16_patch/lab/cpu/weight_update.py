# SPDX-License-Identifier: Apache-2.0
"""Run OpenRLHF's weight updates and moving average, which name the device "cuda", on the CPU."""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.cpu.releases import OPENRLHF, OPENRLHF_RANK
from fp16_patch.patching import ProcessKind, wrap


@wrap(
    "openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap.update_weight",
    release=OPENRLHF,
    processes={ProcessKind.VLLM_WORKER},
    reason="OpenRLHF creates the tensor that receives a weight on cuda. In addition, vLLM's CPU kernels compute with "
    "packed copies of the weights: unless they are packed again after the last weight, every rollout comes from the "
    "first policy.",
    upstream="the device is hard-coded; not reported",
    remove_when="OpenRLHF takes the worker's device and calls process_weights_after_loading",
)
def _cpu_openrlhf_update_weight(
    original: Any, self: Any, name: str, dtype: Any, shape: Any, empty_cache: bool = False
) -> Any:
    from fp16_patch.lab.cpu.cuda_to_cpu import CudaToCpu

    with CudaToCpu():
        result = original(self, name, dtype, shape, empty_cache)
    if empty_cache:  # OpenRLHF sets it with the last weight of an update
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        process_weights_after_loading(self.model_runner.model, self.model_config, self.device)
    return result


@wrap(
    "openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.moving_average",
    **OPENRLHF_RANK,
    reason="OpenRLHF computes the moving average on cuda (--train.enable_ema).",
    upstream="the device is hard-coded; not reported",
    remove_when="OpenRLHF averages on the model's device",
)
def _cpu_openrlhf_moving_average(
    original: Any, self: Any, model: Any, model_ema: Any, beta: float = 0.992, device: str = "cpu"
) -> Any:
    return original(self, model, model_ema, beta, "cpu")
