# SPDX-License-Identifier: Apache-2.0
"""megatron-core by itself in FP16, a tiny GPT that learns to count.

``torchrun --nproc-per-node 2 examples/megatron_core.py``, on two GPUs (the tests run it on a CPU: ``python -m pytest
tests/engines/megatron -k example``). Everything of this package is in :func:`train`. The scale
starts too high, so that the first updates are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from fp16_patch.engines.megatron.config import optimizer_config
from fp16_patch.engines.megatron.replay import stop_after_too_many
from fp16_patch.engines.megatron.scaler import install_loss_scaler
from fp16_patch.engines.megatron.step import take_step
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.update import describe

VOCABULARY, LENGTH, SEQUENCES = 32, 16, 4


def train(updates: int = 12) -> list[dict[str, float]]:
    model = [build()]
    settings = LossScaling(init_scale=2.0**20, growth_interval=100)
    config = OptimizerConfig(
        lr=1e-2, fp16=True, params_dtype=torch.float16, use_distributed_optimizer=True, **optimizer_config(settings)
    )
    optimizer = get_megatron_optimizer(config, model)
    scaler = install_loss_scaler(optimizer, settings, model)
    metrics = []
    for number in range(1, updates + 1):
        run = partial(forward_and_backward, model, optimizer)
        losses = run()
        update = take_step(optimizer)  # in place of optimizer.step()
        stop_after_too_many(optimizer, update, run)
        metrics.append({**describe(update, scaler.counts), "loss": losses[0]["loss"]})
        if dist.get_rank() == 0:
            made = "skipped" if update.skipped else f"made: loss {losses[0]['loss']:.3f}, norm {update.grad_norm:.3f}"
            print(f"update {number} {made}: loss scale {update.loss_scale:g}", flush=True)
    return metrics


def build() -> DistributedDataParallel:
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    config = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        fp16=True,
        params_dtype=torch.float16,
        pipeline_dtype=torch.float16,
        gradient_accumulation_fusion=False,
        finalize_model_grads_func=finalize_model_grads,
    )
    model = GPTModel(config, get_gpt_layer_local_spec(), VOCABULARY, LENGTH).cuda()
    reduction = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    return DistributedDataParallel(config, reduction, Float16Module(config, model))


def forward_and_backward(model: list[Any], optimizer: Any) -> list[dict[str, float]]:
    """All micro-batches of one update; Megatron's schedules multiply the losses by the scale."""
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    losses: list[dict[str, float]] = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=counting(),
        model=model,
        num_microbatches=2,
        seq_length=LENGTH,
        micro_batch_size=SEQUENCES,
        forward_only=False,
    )
    return losses


def counting() -> Iterator[torch.Tensor]:
    while True:
        starts = torch.randint(0, VOCABULARY, (SEQUENCES, 1), device="cuda")
        yield (starts + torch.arange(LENGTH + 1, device="cuda")) % VOCABULARY


def forward(batches: Iterator[torch.Tensor], chunk: Any) -> Any:
    numbers = next(batches)
    positions = torch.arange(LENGTH, device="cuda").expand(SEQUENCES, -1)
    mask = torch.ones(1, 1, LENGTH, LENGTH, device="cuda").triu(1).bool()
    return chunk(numbers[:, :-1], positions, mask, labels=numbers[:, 1:]), mean_loss


def mean_loss(losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    loss = losses.float().mean()
    return loss, {"loss": float(loss)}


if __name__ == "__main__":
    dist.init_process_group("nccl")
    torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    train()
    dist.destroy_process_group()
