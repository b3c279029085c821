# SPDX-License-Identifier: Apache-2.0
"""Cases for test_golden_zero.py: write a small checkpoint of DeepSpeed's ZeRO-2, and load the committed one."""

from __future__ import annotations

from engine_ranks import Result
from golden_saved import BAD, SETTINGS, UPDATES, copy_of, write_facts
from zero_building import digest, new_engine, scale_of, train
from zero_registry import case, folder

from fp16_patch.engines.deepspeed.step import get_loss_scaler
from fp16_patch.loss_scaling import LossScaling

STAGE = 2


def written(rank: int, *, settings: LossScaling) -> Result:
    engine = new_engine(STAGE, settings, schedule=True)
    for update in range(UPDATES):
        train(engine, float("inf") if update in BAD else 1.0)
    into = folder() / "golden-written"
    engine.save_checkpoint(str(into), client_state={})
    return write_facts(into, get_loss_scaler(engine).state_dict(), digest(engine))


def loaded(rank: int, *, settings: LossScaling) -> Result:
    engine = new_engine(STAGE, settings, schedule=True)
    before = digest(engine)
    engine.load_checkpoint(str(copy_of("deepspeed", folder())))
    found = {"state": get_loss_scaler(engine).state_dict(), "weights": digest(engine), "before": before}
    scale = scale_of(engine)
    train(engine)
    return {**found, "next": {"scale": scale, "state": get_loss_scaler(engine).state_dict()}}


case("golden-written", written, ranks=1, settings=SETTINGS)
case("golden-loaded", loaded, ranks=1, settings=SETTINGS)
