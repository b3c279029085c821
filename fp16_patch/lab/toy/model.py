# SPDX-License-Identifier: Apache-2.0
"""Create and save a Qwen2 model, or a mixture of experts, small enough for two CPU cores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fp16_patch.lab.toy.tokenizer import character_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HEAD_DIM = 32
"""The smallest head size that vLLM's CPU attention supports."""

POSITIONS = 256


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, seed: int, experts: int = 0
) -> PreTrainedModel:
    """Return a Qwen2 model with random float32 weights that depend only on ``seed``.

    The caller's random state is not changed. ``hidden`` is a multiple of ``HEAD_DIM``; ``hidden=64, layers=8`` gives
    0.34M parameters. With ``experts`` the model is a Qwen3-MoE with two experts per token, which verl's Megatron, FSDP
    and vLLM all support.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // HEAD_DIM,
        "num_key_value_heads": hidden // HEAD_DIM,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        # The usual 0.02 suits widths in the thousands; at width 64 it doubles the steps needed to learn the task.
        "initializer_range": 0.08,
    }
    chosen = {
        "head_dim": HEAD_DIM,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": hidden,
        "norm_topk_prob": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if experts:
            return Qwen3MoeForCausalLM(Qwen3MoeConfig(**common, **chosen)).float()
        return Qwen2ForCausalLM(Qwen2Config(**common)).float()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights, config, generation config and tokenizer in Hugging Face's layout to ``out``."""
    from unittest import mock

    from transformers import GenerationConfig

    # vLLM takes its default sampling parameters from here: name the special tokens and nothing else.
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**special)
    # To save a model, transformers imports an installed DeepSpeed, which warns that it finds no GPU.
    with mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cpu"}):
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def tiny_model(out: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0, experts: int = 0) -> Path:
    """Write an untrained model (0.1M parameters) with its tokenizer to ``out``, for tests; return ``out``."""
    tokenizer = character_tokenizer()
    save(new_model(tokenizer, hidden=hidden, layers=layers, seed=seed, experts=experts), tokenizer, out)
    return out
