# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF's side of vLLM's workers and of its moving average: the word "cuda", and weights that vLLM has packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch


def _on_the_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_weight(self: Any, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> Any:
        with _cuda_means_cpu():
            result = original(self, name, dtype, shape, empty_cache)
        if empty_cache:  # OpenRLHF says so with the last weight of an update
            from vllm.model_executor.model_loader.utils import process_weights_after_loading

            process_weights_after_loading(self.model_runner.model, self.model_config, self.device)
        return result

    return update_weight


def _cuda_means_cpu() -> Any:
    """Within it, torch makes on the CPU what it is told to make on "cuda"."""
    from torch.overrides import TorchFunctionMode

    class CudaMeansCpu(TorchFunctionMode):  # type: ignore[misc]  # torch is read through Any
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            return function(*args, **(kwargs | {"device": "cpu"} if kwargs.get("device") == "cuda" else kwargs))

    return CudaMeansCpu()


def _averaged_where_it_is(original: Callable[..., Any]) -> Callable[..., Any]:
    def moving_average(self: Any, model: Any, model_ema: Any, beta: float = 0.992, device: str = "cpu") -> Any:
        return original(self, model, model_ema, beta, "cpu")

    return moving_average


PATCHES = (
    Patch(
        name="cpu-openrlhf-update-weight",
        target="openrlhf.trainer.ray.vllm_worker_wrap:WorkerWrap.update_weight",
        kind="wrap",
        distribution="openrlhf",
        versions=">=0.11.2,<0.12",
        process="vLLM worker",
        reason="Makes the tensor that receives a weight on cuda. And vLLM's CPU kernels compute with packed copies of "
        "the weights: without packing again after the last one, every rollout comes from the first policy.",
        upstream="the device is hard-coded; not reported",
        remove_when="OpenRLHF takes the worker's device and calls process_weights_after_loading",
        make=_on_the_cpu,
        parameters=("self", "name", "dtype", "shape", "empty_cache"),
    ),
    Patch(
        name="cpu-openrlhf-moving-average",
        target="openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.moving_average",
        kind="wrap",
        distribution="openrlhf",
        versions=">=0.11.2,<0.12",
        process="trainer rank",
        reason="The trainer asks for the average to be taken on cuda (--train.enable_ema).",
        upstream="the device is hard-coded; not reported",
        remove_when="OpenRLHF averages on the model's device",
        make=_averaged_where_it_is,
        parameters=("self", "model", "model_ema", "beta", "device"),
    ),
)
