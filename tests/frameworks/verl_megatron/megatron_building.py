# SPDX-License-Identifier: Apache-2.0
"""Build a small MegatronEngine of verl through megatron-bridge, and read its state."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.workers.config import HFModelConfig, McoreEngineConfig, McoreOptimizerConfig
from verl.workers.engine import EngineRegistry

from fp16_patch.lab.cpu.settings import MEGATRON_TRANSFORMER
from fp16_patch.lab.toy.model import save
from fp16_patch.lab.toy.tokenizer import character_tokenizer

DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.08,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}


def tiny_qwen3(out: Path, *, experts: bool = False, seed: int = 0) -> Path:
    """Write a Qwen3 of four layers, or one with four experts, with random FP32 weights."""
    tokenizer = character_tokenizer()
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(seed)
    if experts:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tokenizer), **SHAPE, **EXPERTS, **special))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **SHAPE, **special))
    save(model.float(), tokenizer, out)
    return out


def new_engine(
    model: Path,
    dtype: str,
    *,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    model_type: str = "language_model",
    optimizer: dict[str, Any] | None = None,
    megatron_optimizer: dict[str, Any] | None = None,
    transformer: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    **engine: Any,
) -> Any:
    """An initialised engine. ``dtype`` is fp16 or bf16; ranks that are none of tp and pp are data-parallel.

    ``optimizer`` is verl's ``optim``, ``megatron_optimizer`` its ``override_optimizer_config``, ``transformer`` the
    ``override_transformer_config``, ``checkpoint`` verl's own. The rest goes into verl's ``megatron`` section.
    """
    configuration = {
        "dtype": DTYPES[dtype],
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "expert_model_parallel_size": ep,
        "sequence_parallel": False,
        "use_remove_padding": False,
        "override_transformer_config": MEGATRON_TRANSFORMER | (transformer or {}),
    }
    # FP16 makes verl ask for TransformerEngine's optimizer.
    overrides = {"use_precision_aware_optimizer": False} | (megatron_optimizer or {})
    built = EngineRegistry.new(
        model_type=model_type,
        backend="megatron",
        model_config=HFModelConfig(path=str(model), model_type=model_type, use_remove_padding=False),
        engine_config=McoreEngineConfig(**configuration | engine),
        optimizer_config=McoreOptimizerConfig(
            **{"lr": 1e-3, "clip_grad": 1.0, "weight_decay": 0.0, "total_training_steps": 100}
            | {"lr_decay_style": "constant", "override_optimizer_config": overrides}
            | (optimizer or {})
        ),
        checkpoint_config=CheckpointConfig(**(checkpoint or {})),
    )
    built.initialize()
    return built


def optimizers(engine: Any) -> list[Any]:
    """Return Megatron's optimizers: one for the dense parameters and, with expert parallelism, one for experts."""
    return list(getattr(engine.optimizer, "chained_optimizers", [engine.optimizer]))


def scales(engine: Any) -> list[float]:
    """Return the loss scale of each optimizer that has a scaler."""
    scalers = [optimizer.grad_scaler for optimizer in optimizers(engine)]
    return [float(scaler.scale) for scaler in scalers if scaler is not None]


def adam_steps(engine: Any) -> list[float]:
    states = [state for optimizer in optimizers(engine) for state in optimizer.optimizer.state.values()]
    return sorted({float(state["step"]) for state in states if "step" in state})


def exported(engine: Any) -> dict[str, torch.Tensor]:
    """Return a copy of every weight as it is sent to the rollout."""
    stream, _ = engine.get_per_tensor_param()
    return {name: weight.detach().clone() for name, weight in stream}


def digest(engine: Any) -> str:
    """Equal exactly when this rank's parameters, and the FP32 copies that it updates, are, bit for bit."""
    digested = hashlib.sha256()
    parameters = [parameter for chunk in engine.module for parameter in chunk.parameters()]
    groups = [group for optimizer in optimizers(engine) for group in optimizer.optimizer.param_groups]
    for part in [*parameters, *(parameter for group in groups for parameter in group["params"])]:
        digested.update(part.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digested.hexdigest()


def gradient_buffers(engine: Any, experts: bool = False) -> list[torch.Tensor]:
    """Return this rank's gradients as Megatron reduces them, of the dense parameters or of the experts."""
    kind = "expert_parallel_buffers" if experts else "buffers"
    return [buffer.grad_data for chunk in engine.module for buffer in getattr(chunk, kind)]


def hugging_face(model: Path) -> Any:
    """Return the same model in transformers, in FP32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")


def has_experts(model: Path) -> bool:
    return hasattr(AutoConfig.from_pretrained(model), "num_experts")
