# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF's moving average over real engines: as it comes, and in FP32."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from engine_ranks import Result
from zero_building import Net, new_engine, train
from zero_registry import case, stock

from fp16_patch.frameworks.openrlhf.ema import average_in_fp32
from fp16_patch.lab.cpu import import_stubs
from fp16_patch.loss_scaling import LossScaling

BETA, UPDATES, SKIPPED = 0.992, 60, 7
SETTINGS = LossScaling(init_scale=2.0**8)


def averaged(rank: int, *, settings: LossScaling | None, stage: int) -> Result:
    """Train, average after every update, and compare with the same average in float64."""
    import_stubs.install_flash_attention()
    from openrlhf.utils.deepspeed.deepspeed import DeepspeedStrategy

    moving_average = DeepspeedStrategy.moving_average
    if settings is not None:
        moving_average = average_in_fp32.make(moving_average)
    strategy = SimpleNamespace(stage=stage, accumulated_gradient=1, use_dynamic_batch=False, time_steps={"ema": 0})
    engine = new_engine(stage, settings, lr=1e-3, fp16={"initial_scale_power": 8})
    average = evaluating(stage)
    exact = [whole.double() for whole in wholes(average)]
    start = [whole.clone() for whole in exact]
    after_skip = None
    for update in range(UPDATES):
        train(engine, float("nan") if update == SKIPPED else 1.0)
        before = [whole.clone() for whole in wholes(average)]
        moving_average(strategy, engine, average, BETA, "cpu")
        if update == SKIPPED:
            after_skip = all(map(torch.equal, before, wholes(average)))
        else:
            exact = [BETA * old + (1 - BETA) * new.double() for old, new in zip(exact, wholes(engine), strict=True)]
    held = wholes(average)
    return {
        "error": max(float((one - other.double()).abs().max()) for one, other in zip(exact, held, strict=True)),
        "moved": max(float((one - other).abs().max()) for one, other in zip(exact, start, strict=True)),
        "held_moved": max(float((one.double() - other).abs().max()) for one, other in zip(held, start, strict=True)),
        "unmoved_by_a_skip": after_skip,
    }


def evaluating(stage: int) -> Any:
    """An engine as OpenRLHF makes one for an average: it only evaluates, its parameters on the CPU."""
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "fp16": {"enabled": True},
        "zero_optimization": {"stage": stage if stage == 3 else 0, "stage3_param_persistence_threshold": 0},
    }
    return deepspeed.initialize(model=Net(), config=config)[0]


def wholes(engine: Any) -> list[torch.Tensor]:
    found = []
    for parameter in engine.module.parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_tensor")):
            found.append(parameter.data.clone())
    return found


for stage in (2, 3):
    case(f"average-{stage}", partial(averaged, stage=stage), settings=SETTINGS)
    stock(f"average-{stage}", partial(averaged, stage=stage))
