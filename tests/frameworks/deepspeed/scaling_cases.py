# SPDX-License-Identifier: Apache-2.0
"""Growth, overflow, bounds, the stop and what is refused."""

from __future__ import annotations

import math
from typing import Any

import torch
from engine_ranks import Result
from zero_building import Seen, backward, digest, new_engine, norm_of, scale_of, spoilt, train
from zero_registry import STAGES, case, stock

from fp16_patch.frameworks.deepspeed.loss_scaling import last_update, scaler_of
from fp16_patch.loss_scaling import LossScaling

GROWING = LossScaling(init_scale=2.0**8, growth_interval=2)


def growth(rank: int, *, settings: LossScaling | None, stage: int, offload: bool = False) -> Result:
    """The same batch again and again with weights that do not move: every update sees the same gradient."""
    engine = new_engine(
        stage,
        settings,
        offload=offload,
        lr=0.0,
        clip=0.0,
        fp16={"initial_scale_power": 8, "loss_scale_window": 2, "hysteresis": 1},
    )
    seen = Seen(engine)
    scales, norms = [], []
    for _ in range(8):
        scales.append(scale_of(engine))
        train(engine)
        seen.after_step()
        norms.append(norm_of(engine))
    return {"scales": scales, "norms": norms, "seen": seen.norms}


for stage in STAGES:
    case(f"growth-{stage}", growth, settings=GROWING, stage=stage)
    stock(f"growth-{stage}", growth, stage=stage)
case("growth-2-offload", growth, settings=GROWING, stage=2, offload=True)
stock("growth-2-offload", growth, stage=2, offload=True)
case("growth-3-offload", growth, ranks=1, settings=GROWING, stage=3, offload=True)
