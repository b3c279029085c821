# SPDX-License-Identifier: Apache-2.0
"""Cases for test_golden_megatron.py: write a small checkpoint of megatron-core, and load the committed one."""

from __future__ import annotations

import torch
from core_building import Training
from core_registry import case, folder
from engine_ranks import Result
from golden_saved import BAD, SETTINGS, UPDATES, copy_of, write_facts

from fp16_patch.engines.megatron.checkpoint import resumption
from fp16_patch.engines.megatron.step import take_step

FILE = "checkpoint.pt"


def smallest_training() -> Training:
    small = {"num_layers": 1, "hidden_size": 16, "ffn_hidden_size": 16}
    return Training(SETTINGS, distributed=False, transformer=small)


def written(rank: int) -> Result:
    training = smallest_training()
    for update in range(UPDATES):
        training.backward(seed=update)
        if update in BAD:
            training.spoil(experts=False)
        take_step(training.optimizer)
    into = folder() / "golden-written"
    into.mkdir()
    models = [chunk.state_dict() for chunk in training.model]
    torch.save({"model": models, "optimizer": training.optimizer.state_dict()}, into / FILE)
    return write_facts(into, training.scaler.state_dict(), training.digest())


def loaded(rank: int) -> Result:
    training = smallest_training()
    before = training.digest()
    saved = torch.load(copy_of("megatron", folder()) / FILE, weights_only=False)
    for chunk, state in zip(training.model, saved["model"], strict=True):
        chunk.load_state_dict(state)
    training.optimizer.load_state_dict(saved["optimizer"])
    said = resumption(training.optimizer, "the checkpoint")
    rule = training.scaler.rule
    found = {"said": said, "state": rule.state_dict(), "weights": training.digest(), "before": before}
    scale = float(training.optimizer.get_loss_scale())
    training.backward(seed=UPDATES)
    take_step(training.optimizer)
    return {**found, "next": {"scale": scale, "state": rule.state_dict()}}


case("golden-written", written)
case("golden-loaded", loaded)
