# SPDX-License-Identifier: Apache-2.0
"""A tiny GPT of megatron-core on a few ranks over gloo, its optimizer, and batches; no framework around it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from fp16_patch.engines.megatron.config import optimizer_config
from fp16_patch.engines.megatron.scaler import install_loss_scaler
from fp16_patch.engines.megatron.sub_optimizers import list_sub_optimizers
from fp16_patch.loss_scaling import LossScaling

VOCABULARY, LENGTH, BATCH = 64, 16, 2
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Training:
    """``model``, ``optimizer`` and ``config``; ``settings`` None leaves the optimizer as Megatron builds it."""

    def __init__(
        self,
        settings: LossScaling | None = None,
        *,
        dtype: str = "fp16",
        tp: int = 1,
        pp: int = 1,
        chunks: int = 1,
        ep: int = 1,
        experts: int = 0,
        distributed: bool = True,
        clip: float = 0.0,
        lr: float = 1e-3,
        micro_batches: int = 1,
        optimizer: dict[str, Any] | None = None,
        transformer: dict[str, Any] | None = None,
        ddp: dict[str, Any] | None = None,
    ) -> None:
        virtual = chunks if chunks > 1 else None
        parallel_state.initialize_model_parallel(
            tp, pp, virtual, expert_model_parallel_size=ep, expert_tensor_parallel_size=1
        )
        model_parallel_cuda_manual_seed(7)
        self.micro_batches = micro_batches
        interleaved = {"virtual_pipeline_model_parallel_size": virtual, "num_layers": 2 * chunks}
        self.config = _transformer(dtype, tp, pp, ep, experts, interleaved | (transformer or {}))
        reduced = {"use_distributed_optimizer": distributed, **(ddp or {})}
        self.model = [_chunk(self.config, dtype, number if virtual else None, reduced) for number in range(chunks)]
        scaling = optimizer_config(settings) if settings else {}
        self.optimizer_config = OptimizerConfig(
            optimizer="adam",
            lr=lr,
            fp16=dtype == "fp16",
            bf16=dtype == "bf16",
            params_dtype=DTYPES[dtype],
            clip_grad=clip,
            weight_decay=0.0,
            use_distributed_optimizer=distributed,
            **(scaling | (optimizer or {})),
        )
        self.optimizer = get_megatron_optimizer(self.optimizer_config, self.model)
        self.scaler = None
        if settings is not None:
            self.scaler = install_loss_scaler(self.optimizer, settings, self.model)
        elif dtype == "fp16":
            self.config.grad_scale_func = self.optimizer.scale_loss  # as Megatron-LM's training does

    def backward(self, seed: int = 0, factor: Any = 1.0) -> list[Any]:
        """All micro-batches of one update; ``factor`` of the loss, or of each micro-batch's."""
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        factors = list(factor) if isinstance(factor, list | tuple) else [factor] * self.micro_batches
        batches = [(tokens(seed, number), one) for number, one in enumerate(factors)]
        return get_forward_backward_func()(
            forward_step_func=_forward,
            data_iterator=[iter(batches) for _ in self.model] if len(self.model) > 1 else iter(batches),
            model=self.model,
            num_microbatches=self.micro_batches,
            seq_length=LENGTH,
            micro_batch_size=BATCH,
            forward_only=False,
        )

    def spoil(self, *, experts: bool) -> None:
        """An inf in a gradient that experts, or the others, have on this rank."""
        for chunk in self.model:
            for buffer in chunk.expert_parallel_buffers if experts else chunk.buffers:
                buffer.grad_data[:] = float("inf")

    def close(self) -> None:
        """So that this process can build another."""
        parallel_state.destroy_model_parallel()

    def digest(self) -> str:
        """Of this rank's weights, what the optimizer holds of them, and its state."""
        whole = hashlib.sha256()
        for parameter in self.parameters().values():
            whole.update(parameter.detach().float().numpy().tobytes())
        for part in list_sub_optimizers(self.optimizer):
            for group in part.optimizer.param_groups if part.optimizer else ():
                for parameter in group["params"]:
                    whole.update(parameter.detach().numpy().tobytes())
                    for value in part.optimizer.state[parameter].values():
                        whole.update(torch.as_tensor(value).numpy().tobytes())
        return whole.hexdigest()[:16]

    def parameters(self) -> dict[str, torch.Tensor]:
        return {name: parameter for chunk in self.model for name, parameter in chunk.named_parameters()}

    def gradients(self) -> dict[str, torch.Tensor]:
        """As the backward left them, scaled."""
        return {name: parameter.main_grad.clone() for name, parameter in self.parameters().items()}


def tokens(seed: int, number: int) -> torch.Tensor:
    """A micro-batch of this data-parallel rank's own."""
    rank = parallel_state.get_data_parallel_rank()
    generator = torch.Generator().manual_seed(1000 * seed + 10 * number + rank)
    return torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)


def _forward(batches: Any, chunk: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
    batch, factor = next(batches)
    positions = torch.arange(LENGTH)[None].expand(BATCH, -1)
    mask = torch.ones(1, 1, LENGTH, LENGTH).triu(1).bool()
    return chunk(batch, positions, mask, labels=batch.roll(-1, 1)), partial(_loss, factor)


def _loss(factor: float, losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    loss = losses.float().mean() * factor
    return loss, {"loss": float(loss)}


def _transformer(dtype: str, tp: int, pp: int, ep: int, experts: int, more: dict[str, Any]) -> TransformerConfig:
    routing: dict[str, Any] = {}
    if experts:
        routing = {
            "num_moe_experts": experts,
            "moe_router_topk": 2,
            "moe_ffn_hidden_size": 32,
            "moe_router_dtype": "fp32",
            "moe_token_dispatcher_type": "alltoall",
            "moe_router_load_balancing_type": "none",
            "moe_aux_loss_coeff": 0.0,
            "add_bias_linear": False,
        }
    given = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "ffn_hidden_size": 64,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "expert_model_parallel_size": ep,
        "sequence_parallel": bool(experts) and tp > 1,
        "use_cpu_initialization": True,
        "fp16": dtype == "fp16",
        "bf16": dtype == "bf16",
        "params_dtype": DTYPES[dtype],
        "pipeline_dtype": DTYPES[dtype],
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "persist_layer_norm": False,
        "finalize_model_grads_func": finalize_model_grads,
    }
    return TransformerConfig(**(given | routing | more))


def _chunk(config: TransformerConfig, dtype: str, number: int | None, ddp: dict[str, Any]) -> DistributedDataParallel:
    torch.manual_seed(0)  # the same parameters on every data-parallel rank
    model = GPTModel(
        config,
        get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=number),
        vocab_size=VOCABULARY,
        max_sequence_length=LENGTH,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number),
        vp_stage=number,
        share_embeddings_and_output_weights=False,
    )
    wrapped = model if dtype == "fp32" else Float16Module(config, model)
    reduced = DistributedDataParallelConfig(**{"grad_reduce_in_fp32": True, **ddp})
    return DistributedDataParallel(config, reduced, wrapped)
