# SPDX-License-Identifier: Apache-2.0
"""Saved and resumed in another process: Megatron's plain and sharded checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from core_building import Training
from core_registry import LAYOUTS, case, folder, in_layout
from engine_ranks import Result, describe_error
from megatron.core import dist_checkpointing

from fp16_patch.engines.megatron.checkpoint import resumption
from fp16_patch.engines.megatron.step import take_step
from fp16_patch.engines.megatron.sub_optimizers import list_sub_optimizers
from fp16_patch.loss_scaling import LossScaling

USUAL = LossScaling(init_scale=2.0**10, growth_interval=3, hysteresis=2)
BAD = {1, 2}
SAVED, LAST = 4, 10
"""Updates: two of the first four overflow, so that the scale, its trackers and its counts are not as at the start."""


def train(training: Training, rank: int, first: int, last: int) -> list[dict[str, Any]]:
    made = []
    for number in range(first, last):
        training.backward(seed=number)
        if number in BAD and rank == 0:
            training.spoil(experts=bool(training.config.num_moe_experts))
        update = take_step(training.optimizer) if training.scaler else training.optimizer.step()
        made.append({"update": str(update), "digest": training.digest()})
    return made


def state_of(training: Training) -> dict[str, Any]:
    return {**training.scaler.state_dict(), "shown": float(training.optimizer.get_loss_scale())}


def whole(rank: int, *, name: str, **options: Any) -> Result:
    """One run from end to end, with a checkpoint by the way."""
    training = Training(USUAL, **options)
    train(training, rank, 0, SAVED)
    file = folder() / f"{name}.{rank}.pt"
    models = [chunk.state_dict() for chunk in training.model]
    torch.save({"model": models, "optimizer": training.optimizer.state_dict()}, file)
    return {"state": state_of(training), "steps": train(training, rank, SAVED, LAST)}


def resumed(
    rank: int,
    *,
    name: str,
    settings: LossScaling = USUAL,
    section: bool = True,
    steps: int = LAST - SAVED,
    **options: Any,
) -> Result:
    training = Training(settings, **options)
    saved = torch.load(folder() / f"{name}.{rank}.pt", weights_only=False)
    for chunk, state in zip(training.model, saved["model"], strict=True):
        chunk.load_state_dict(state)
    if section:
        training.optimizer.load_state_dict(saved["optimizer"])
    else:
        training.optimizer.reload_model_params()
    said = resumption(training.optimizer, "the checkpoint")
    state = state_of(training)
    return {"said": said, "state": state, "steps": train(training, rank, SAVED, SAVED + steps)}


for layout in [name for name in LAYOUTS if name.endswith("replicated")]:  # these have their whole state in state_dict
    in_layout("whole", whole, layout, name=layout)
    in_layout("resumed", resumed, layout, name=layout)
    in_layout("without-section", resumed, layout, name=layout, section=False, steps=1)
OTHERS = LossScaling(init_scale=2.0**10, growth_interval=2, min_scale=2.0**10, hysteresis=1)
in_layout("other-settings", resumed, "ep2-replicated", name="ep2-replicated", settings=OTHERS, steps=0)
in_layout("restarted", resumed, "ep2-replicated", name="ep2-replicated", settings=LossScaling(init_scale=4.0), steps=0)


def of_stock(rank: int, *, name: str, **options: Any) -> Result:
    """Megatron without us, three overflows of experts only: its two scales drift apart, and are saved so."""
    stock = {"initial_loss_scale": 2.0**12, "hysteresis": 2, "loss_scale_window": 3}
    training = Training(None, optimizer=stock, **options)
    train(training, rank, 0, SAVED)
    scalers = [part.grad_scaler for part in training.optimizer.chained_optimizers]
    models = [chunk.state_dict() for chunk in training.model]
    torch.save({"model": models, "optimizer": training.optimizer.state_dict()}, folder() / f"{name}.{rank}.pt")
    return {"scales": [float(scaler.scale) for scaler in scalers]}


def to_stock(rank: int, *, name: str, **options: Any) -> Result:
    training = Training(None, **options)
    training.optimizer.load_state_dict(torch.load(folder() / f"{name}.{rank}.pt", weights_only=False)["optimizer"])
    scalers = [part.grad_scaler for part in training.optimizer.chained_optimizers]
    return {"scalers": [[float(s.scale), s._growth_tracker, s._hysteresis_tracker] for s in scalers]}


in_layout("of-stock", of_stock, "ep2-replicated", name="stock")
FROM_STOCK = LossScaling(init_scale=2.0**12, hysteresis=2)
in_layout("from-stock", resumed, "ep2-replicated", name="stock", settings=FROM_STOCK, steps=1)
in_layout("to-stock", to_stock, "ep2-replicated", name="ep2-replicated")


def broken(rank: int, *, name: str, **options: Any) -> Result:
    """What somebody has written over the scaler's state in a real checkpoint."""
    saved = torch.load(folder() / f"{name}.{rank}.pt", weights_only=False)["optimizer"]
    training = Training(USUAL, **options)
    errors = {}
    for what, state in BROKEN.items():
        saved["grad_scaler"] = state
        try:
            training.optimizer.load_state_dict(saved)
        except RuntimeError as error:
            errors[what] = describe_error(error)
    return {"errors": errors, "state": state_of(training)}


BROKEN: dict[str, Any] = {"nothing": None, "number": 1024.0, "fsdp": {"scale": 2.0, "hysteresis_left": 1, "counts": {}}}
in_layout("broken", broken, "1-replicated", name="1-replicated")


def sharded(rank: int, *, load: bool, **options: Any) -> Result:
    """Megatron's sharded checkpoint, of the model and its optimizer."""
    training = Training(USUAL, **options)
    place = folder() / "sharded"
    place.mkdir(exist_ok=True)
    if not load:
        train(training, rank, 0, SAVED)
    model = training.model[0].module.module.sharded_state_dict()
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    optimizer = training.optimizer.sharded_state_dict(model, is_loading=load, metadata=metadata)
    if not load:
        dist_checkpointing.save({"model": model, "optimizer": optimizer}, str(place))
        return {"state": state_of(training)}
    found = dist_checkpointing.load({"model": model, "optimizer": optimizer}, str(place))
    training.model[0].module.module.load_state_dict(found["model"])
    training.optimizer.load_state_dict(found["optimizer"])
    said = resumption(training.optimizer, place)
    return {"said": said, "state": state_of(training), "steps": train(training, rank, SAVED, SAVED + 1)}


case("sharded-tp2", sharded, ranks=2, load=False, tp=2, distributed=False)
case("sharded-to-1", sharded, load=True, distributed=False)


def warm_up(rank: int, **options: Any) -> Result:
    """What Megatron does before it loads a sharded checkpoint; then a load of an equal state, another object."""
    training = Training(USUAL, **options)
    train(training, rank, 0, SAVED)
    before = state_of(training)
    model = training.model[0].module.module.sharded_state_dict()
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    training.optimizer.sharded_state_dict(model, is_loading=True, metadata=metadata)
    after_warm_up = len(training.scaler.pop_loaded_states())
    for part in list_sub_optimizers(training.optimizer):
        part.grad_scaler.load_state_dict(dict(part.grad_scaler.state_dict()))
    after_load = len(training.scaler.pop_loaded_states())
    return {"loaded": [after_warm_up, after_load], "kept": state_of(training) == before}


in_layout("warm-up", warm_up, "1")
in_layout("warm-up", warm_up, "1-replicated")
