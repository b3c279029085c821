# SPDX-License-Identifier: Apache-2.0
"""Cases for test_loss_check.py: losses that are not finite, of the actor and the critic, in three precisions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from engine_building import digest, new_batch, new_engine
from engine_ranks import Result
from engine_registry import BF16, FP16, FP32, STRATEGIES, case, model
from verl.workers.config import CriticConfig
from verl.workers.utils.losses import sft_loss, value_loss

from fp16_patch.frameworks.verl.loss_check import losses_of
from fp16_patch.precision import Precision

PRECISIONS = {"fp16": FP16, "bf16": BF16, "fp32": FP32}


def weighted_loss(model_output: Any, data: Any, dp_group: Any = None) -> Any:
    """verl's loss with a weight as policy losses have it, and small enough for gradients in FP16."""
    loss, metrics = sft_loss(None, model_output=model_output, data=data, dp_group=dp_group)
    return loss * data["advantages"].values().mean() / 100, metrics


def loss_of(role: str, strategy: str) -> Any:
    if role == "actor":
        return weighted_loss
    value = partial(value_loss, CriticConfig(strategy=strategy, ppo_micro_batch_size_per_gpu=2))

    def small(**given: Any) -> Any:
        loss, metrics = value(**given)
        return loss / 1000, metrics

    return small


def bad_input(rank: int, *, role: str, strategy: str, dtype: str) -> Result:
    """A good update, one with a NaN in an input of the last rank's last micro-batch, a good one."""
    model_type = "language_model" if role == "actor" else "value_model"
    engine = new_engine(model(), strategy, dtype, model_type=model_type)
    updates = []
    for bad in (False, True, False):
        batch = new_batch(rank)
        batch["advantages"] = torch.nested.nested_tensor_from_jagged(
            torch.ones_like(batch["returns"].values()), batch["returns"].offsets()
        )
        if bad and rank == torch.distributed.get_world_size() - 1:
            batch["advantages" if role == "actor" else "returns"].values()[-1] = float("nan")
        before = digest(engine)
        with engine.train_mode():
            metrics = engine.train_batch(batch, loss_of(role, strategy))["metrics"]
        engine.lr_scheduler_step()
        found = losses_of(engine).bad_loss
        updates.append(
            {
                "changed": digest(engine) != before,
                "metrics": {name: value for name, value in metrics.items() if name.startswith(("loss", "grad_norm"))},
                "scale": losses_of(engine).get_scale(),
                "found": None if found is None else [found.role, found.source],
            }
        )
    return {"updates": updates}


def register(role: str, strategy: str, dtype: str, precision: Precision) -> None:
    run = partial(bad_input, role=role, strategy=strategy, dtype=dtype)
    case(f"bad-loss-{role}-{strategy}-{dtype}", run, precision=precision)


for strategy in STRATEGIES:
    register("actor", strategy, "fp16", FP16)
register("critic", "fsdp2", "fp16", FP16)
register("actor", "fsdp2", "bf16", BF16)
register("critic", "fsdp", "fp32", FP32)
