# SPDX-License-Identifier: Apache-2.0
"""A small ZeRO engine on a CPU, batches for it, and what can be read off it."""

from __future__ import annotations

import hashlib
from importlib import import_module
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from fp16_patch.engines.deepspeed.config import with_fp16
from fp16_patch.loss_scaling import LossScaling

# DeepSpeed asks oneDNN whether a CPU is fast in FP16, not whether torch can do it; and builds an operator with gcc
# for ranks that share memory, which gloo does without.
CPU_Accelerator.is_fp16_supported = lambda _: True
import_module("deepspeed.comm.torch").build_shm_op = lambda: None

INPUTS, HIDDEN = 6, 16


class Net(torch.nn.Module):
    """Its loss is ``factor`` times a mean square, in FP32 as losses are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(INPUTS, HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, 2)

    def forward(self, inputs: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        hidden = torch.tanh(self.first(inputs.to(self.first.weight.dtype)))
        return self.second(hidden).float().square().mean() * factor


def new_engine(
    stage: int,
    settings: LossScaling | None,
    *,
    dtype: str = "fp16",
    offload: bool = False,
    accumulate: int = 1,
    clip: float = 0.0,
    lr: float = 1e-2,
    schedule: bool = False,
    **config: Any,
) -> Any:
    """Configured as this package does it, with ``settings``; with None as a user of DeepSpeed would."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # Small parameters are not kept whole: on two ranks over gloo one update in some fifty then finds an inf,
        # with and without the patches.
        zero["stage3_param_persistence_threshold"] = 0
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    whole: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip,
        "steps_per_print": None,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        # torch's: DeepSpeed would build its own with gcc
        "optimizer": {"type": "AdamW", "params": {"lr": lr, "torch_adam": True}},
        dtype: {"enabled": True},
    }
    if settings is not None and dtype == "fp16":
        whole = with_fp16(whole, settings)
    for key, value in config.items():
        whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    if schedule:
        whole["scheduler"] = {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": lr / 2, "warmup_max_lr": lr, "warmup_num_steps": 100},
        }
    model = Net()
    return deepspeed.initialize(model=model, config=whole, model_parameters=model.parameters())[0]


def inputs(seed: int) -> torch.Tensor:
    return torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(seed))


def backward(engine: Any, factor: float = 1.0, *, seed: int | None = None) -> None:
    """One micro-batch of this rank's own."""
    loss = engine(inputs(dist.get_rank() if seed is None else seed), factor)
    engine.backward(loss)


def train(engine: Any, factor: float = 1.0) -> None:
    backward(engine, factor)
    engine.step()


def spoilt(rank: int) -> float:
    """A factor for a batch that is bad on the last rank only."""
    return float("nan") if rank == dist.get_world_size() - 1 else 1.0


def scale_of(engine: Any) -> float:
    return float(engine.optimizer.loss_scale)


def norm_of(engine: Any) -> float | None:
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """FP32 ones, whole, on every rank; without ZeRO the rounded ones."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = engine.module.named_parameters()
    if not engine.zero_optimization():
        return {name: parameter.detach().float() for name, parameter in whole}
    return {name: safe_get_full_fp32_param(parameter) for name, parameter in whole}


def digest(engine: Any) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(weights(engine).items()):
        whole.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


class Seen:
    """The norm, over all ranks, of the gradients that the optimizer inside gets to see, one an update."""

    def __init__(self, engine: Any) -> None:
        self.norms: list[float] = []
        self.peak, self.nonzero = 0.0, 0
        """Of this rank, in all updates."""
        self._squares = torch.zeros((), dtype=torch.float64)
        engine.optimizer.optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        # ZeRO calls it once a group, with that group alone.
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.peak = max([self.peak, *(float(gradient.abs().max()) for gradient in gradients)])
        self.nonzero += sum(int(gradient.count_nonzero()) for gradient in gradients)
        self._squares += sum(gradient.double().square().sum() for gradient in gradients)

    def after_step(self) -> None:
        if dist.get_world_size() > 1:
            dist.all_reduce(self._squares)
        self.norms.append(float(self._squares.sqrt()))
        self._squares.zero_()
