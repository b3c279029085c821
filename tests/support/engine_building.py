# SPDX-License-Identifier: Apache-2.0
"""A small engine of verl, a batch for it, and what can be read off its live tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

PROMPT = 3
RESPONSES = (4, 9, 6, 2)
"""Tokens in each prompt, and in each of a rank's responses."""


def new_engine(
    model: Path,
    strategy: str,
    param_dtype: str,
    *,
    model_type: str = "language_model",
    lora: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **engine: Any,
) -> Any:
    """An initialised ``FSDPEngine``, configured as the flag configures it except where ``engine`` differs."""
    configuration = {
        "strategy": strategy,
        "model_dtype": "fp32",
        "mixed_precision": {"param_dtype": param_dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        "use_no_sync_for_gradient_accumulation": False,
        "use_torch_compile": False,
        "use_remove_padding": False,
    }
    built = EngineRegistry.new(
        model_type=model_type,
        backend=strategy,
        model_config=HFModelConfig(
            path=str(model),
            model_type=model_type,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
            **(lora or {}),
        ),
        engine_config=FSDPEngineConfig(**configuration | engine),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=100, **(optimizer or {})),
        checkpoint_config=CheckpointConfig(),
    )
    built.initialize()
    return built


def new_batch(seed: int, lengths: Sequence[int] = RESPONSES, rows: slice = slice(None)) -> Any:
    """Sequences of different length in micro-batches of two, nested as verl's trainer sends them; ``rows`` of them."""
    generator = torch.Generator().manual_seed(seed)
    responses = [torch.randint(3, 100, (length,), generator=generator) for length in lengths][rows]
    prompts = [torch.randint(3, 100, (PROMPT,), generator=generator) for _ in lengths][rows]
    whole = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    tensors = {
        "input_ids": whole,
        "position_ids": [torch.arange(len(tokens)) for tokens in whole],
        "loss_mask": [(torch.arange(len(tokens)) >= PROMPT).long() for tokens in whole],
        "prompts": prompts,
        "responses": responses,
        "response_mask": [torch.ones_like(tokens) for tokens in responses],
        "values": [torch.zeros(len(tokens)) for tokens in responses],
        "returns": [torch.ones(len(tokens)) for tokens in responses],
    }
    return tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in tensors.items()},
        non_tensor_dict={
            "temperature": 1.0,
            "pad_token_id": 0,
            "pad_mode": DatasetPadMode.NO_PADDING,
            "use_dynamic_bsz": False,
            "use_remove_padding": False,
            "use_fused_kernels": False,
            "micro_batch_size_per_gpu": 2,
            "global_batch_size": None,
        },
    )


def local(tensor: Any) -> torch.Tensor:
    """This rank's part."""
    part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.detach()


def whole(tensor: Any) -> torch.Tensor:
    """All ranks' parts together, as a copy."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def parameters(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's parts of all parameters."""
    for name, parameter in engine.module.named_parameters():
        yield name, local(parameter)


def digest(engine: Any) -> str:
    """Equal exactly when this rank's parameters are, bit for bit."""
    digested = hashlib.sha256()
    for name, part in parameters(engine):
        digested.update(name.encode() + part.contiguous().view(torch.uint8).numpy().tobytes())
    return digested.hexdigest()


def finite(engine: Any) -> bool:
    return all(bool(part.isfinite().all()) for _, part in parameters(engine))


def held_gradients(engine: Any) -> list[str]:
    """Dtypes of the gradients held right now, wherever FSDP keeps them between two micro-batches."""
    from torch.distributed.fsdp import FSDPModule

    held = [parameter.grad for parameter in engine.module.parameters()]
    for part in engine.module.modules():
        if isinstance(part, FSDPModule) and (group := part._get_fsdp_state()._fsdp_param_group):
            held += [parameter.unsharded_accumulated_grad for parameter in group.fsdp_params]
    return sorted({str(gradient.dtype).removeprefix("torch.") for gradient in held if gradient is not None})
