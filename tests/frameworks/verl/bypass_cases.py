# SPDX-License-Identifier: Apache-2.0
"""Cases for test_bypass_mismatch.py: two steps of two updates each in bypass mode, and what they should measure."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from engine_building import RESPONSES, new_batch, new_engine
from engine_ranks import Result
from engine_registry import STRATEGIES, case, model
from verl.trainer.config.algorithm import RolloutCorrectionConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig
from verl.workers.config.actor import PolicyLossConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from fp16_patch.loss_scaling import LossScaling
from fp16_patch.mismatch.metrics import mismatch_metrics
from fp16_patch.precision import Precision

# So few tokens make large gradients: at the default scale the first update would be skipped, and move nothing.
SMALL = LossScaling(init_scale=2.0**8)


def two_steps(rank: int, *, strategy: str, loss_mode: str) -> Result:
    """Return each update's ``mismatch/*`` metrics, and what a separate pass before it measures."""
    engine = new_engine(model(), strategy, "fp16")
    loss = partial(ppo_loss, config=actor(strategy, loss_mode))
    updates, expected = [], []
    for number in range(4):
        batch = mini_batch(10 * number + rank, last=number % 2 == 1)
        expected.append(by_a_pass_of_its_own(engine, batch))
        with engine.train_mode():
            metrics = engine.train_batch(batch, loss)["metrics"]
        updates.append({name: value for name, value in metrics.items() if name.startswith("mismatch/")})
    return {"updates": updates, "expected": expected}


def actor(strategy: str, loss_mode: str) -> FSDPActorConfig:
    correction = RolloutCorrectionConfig.bypass_pg_is()
    return FSDPActorConfig(
        strategy=strategy,
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=2,
        policy_loss=PolicyLossConfig(loss_mode=loss_mode, rollout_correction=correction),
    )


def mini_batch(seed: int, *, last: bool) -> Any:
    """Return a batch with log-probs of a rollout; in this mode they are the old log-probs."""
    batch, generator = new_batch(seed), torch.Generator().manual_seed(seed)
    for name in ("old_log_probs", "advantages"):
        rows = [-5 * torch.rand(length, generator=generator) for length in RESPONSES]
        batch[name] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    tu.assign_non_tensor(batch, update_lr_scheduler=last)
    return batch


def by_a_pass_of_its_own(engine: Any, batch: Any) -> dict[str, float]:
    with engine.eval_mode():
        output = engine.infer_batch(batch.clone())["model_output"]
    padded = batch.select("old_log_probs", "response_mask").to_padded_tensor()
    pi = no_padding_2_padding(output["log_probs"], batch)
    return mismatch_metrics(padded["old_log_probs"], pi, padded["response_mask"])


for mode, strategy in (*(("bypass_mode", strategy) for strategy in STRATEGIES), ("vanilla", "fsdp2")):
    run = partial(two_steps, strategy=strategy, loss_mode=mode)
    case(f"{mode}-{strategy}", run, precision=Precision(loss_scaling=SMALL))
