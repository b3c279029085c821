# SPDX-License-Identifier: Apache-2.0
"""A Qwen2, or a mixture of experts, small enough for two CPU cores, and how it is written to disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fp16_patch.lab.toy.tokenizer import character_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HEAD_DIM = 32
"""The smallest head that vLLM's CPU attention supports."""

POSITIONS = 256


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, seed: int, experts: int = 0
) -> PreTrainedModel:
    """A Qwen2 with random float32 weights that depend on ``seed`` alone; the caller's random state is untouched.

    ``hidden`` is a multiple of ``HEAD_DIM``. ``hidden=64, layers=8`` makes 0.34M parameters. With ``experts`` it is a
    Qwen3-MoE, each token going to two of them: what verl's Megatron, FSDP and vLLM all know.
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
    """Write weights, config, generation config and tokenizer in Hugging Face's layout."""
    from transformers import GenerationConfig

    # vLLM takes its default sampling parameters from here: name the special tokens and nothing else.
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**special)
    with _deepspeed_kept_quiet():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextmanager
def _deepspeed_kept_quiet() -> Iterator[None]:
    """To save a model, transformers imports DeepSpeed where it is installed, which then warns that it sees no GPU."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DS_ACCELERATOR"]
        else:
            os.environ["DS_ACCELERATOR"] = before


def tiny_model(out: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0, experts: int = 0) -> Path:
    """Write an untrained model (0.1M parameters) with its tokenizer to ``out``, for tests that need any model."""
    tokenizer = character_tokenizer()
    save(new_model(tokenizer, hidden=hidden, layers=layers, seed=seed, experts=experts), tokenizer, out)
    return out
