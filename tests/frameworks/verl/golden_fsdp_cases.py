# SPDX-License-Identifier: Apache-2.0
"""Cases for test_golden_fsdp.py: write a small checkpoint of verl's FSDP engine, and load the committed one."""

from __future__ import annotations

from typing import Any

import torch
from engine_building import digest, new_engine
from engine_ranks import Result
from engine_registry import case, folder, train
from golden_saved import BAD, SETTINGS, UPDATES, copy_of, write_facts
from scaling_cases import spoil
from transformers import AutoConfig, AutoModelForCausalLM

from fp16_patch.lab.toy.model import character_tokenizer, save, tiny_model
from fp16_patch.precision import Precision


def smallest_engine(name: str) -> Any:
    """Make a model of 11 thousand parameters: the repository holds each of them four times."""
    path = tiny_model(folder() / name, hidden=32, layers=1)
    config = AutoConfig.from_pretrained(path)
    config.intermediate_size = 8
    torch.manual_seed(0)
    save(AutoModelForCausalLM.from_config(config).float(), character_tokenizer(), path)
    return new_engine(path, "fsdp2", "fp16")


def written(rank: int) -> Result:
    engine = smallest_engine("golden-model-written")
    for update in range(UPDATES):
        if update in BAD:
            spoil(engine, rank, float("inf"))
        train(engine, rank)
    into = folder() / "golden-written"
    engine.save_checkpoint(str(into / f"global_step_{UPDATES}"), global_step=UPDATES)
    return write_facts(into, engine.scaler.state_dict(), digest(engine))


def loaded(rank: int) -> Result:
    engine = smallest_engine("golden-model-loaded")
    before = digest(engine)
    path = copy_of("fsdp", folder()) / f"global_step_{UPDATES}"
    engine.load_checkpoint(str(path), del_local_after_load=False)
    found = {"state": engine.scaler.state_dict(), "weights": digest(engine), "before": before}
    metrics = train(engine, rank)
    return {**found, "next": {"scale": metrics["loss_scale"][0], "state": engine.scaler.state_dict()}}


case("golden-written", written, ranks=1, precision=Precision(loss_scaling=SETTINGS))
case("golden-loaded", loaded, ranks=1, precision=Precision(loss_scaling=SETTINGS))
