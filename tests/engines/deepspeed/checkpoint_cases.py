# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: runs killed and resumed, new settings, to and from DeepSpeed as it comes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from engine_ranks import Result, describe_error
from zero_building import digest, new_engine, norm_of, scale_of, spoilt, train
from zero_registry import case, folder, stock

from fp16_patch.engines.deepspeed.scaler import DeepSpeedLossScaler
from fp16_patch.engines.deepspeed.step import get_loss_scaler
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.state_file import FILE

JUMPY = LossScaling(init_scale=2.0**9, growth_interval=2, hysteresis=2)
STEPS = 8
BAD = (2, 3, 6)


def run_on(
    rank: int,
    *,
    settings: LossScaling | None,
    stage: int,
    name: str,
    kill: Callable[[Any, int], None] | None = None,
    steps: int = STEPS,
    **engine_options: Any,
) -> Result:
    """Train to the end from the latest checkpoint of ``name``, saving after every update."""
    path = folder() / f"checkpoints-{name}"
    engine = new_engine(stage, settings, schedule=True, **engine_options)
    engine.load_checkpoint(str(path))
    start, resumed_at = engine.global_steps, scale_of(engine)
    state = get_loss_scaler(engine).state_dict() if settings else dict(vars(engine.optimizer.loss_scaler), dtype=None)
    made: dict[str, Any] = {}
    for step in range(start + 1, steps + 1):
        if kill is not None:
            kill(engine, step)
        train(engine, spoilt(rank) if step in BAD else 1.0)
        made[str(step)] = {
            "scale": scale_of(engine),
            "norm": norm_of(engine),
            "weights": digest(engine),
            "lr": engine.lr_scheduler.last_batch_iteration,
        }
        engine.save_checkpoint(str(path), client_state={})
    return {"start": start, "resumed_at": resumed_at, "state": state, "steps": made}


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def between(engine: Any, step: int) -> None:
    if step == 5:
        die()


def in_update(engine: Any, step: int) -> None:
    """The growth that this step brings is held back, and some weights have moved."""
    if step == 5:
        engine.optimizer.optimizer.register_step_post_hook(die)


def in_checkpoint(engine: Any, step: int) -> None:
    """The scaler's file is there, the model's is not, and nothing names this checkpoint."""
    if step == 5:
        engine._save_zero_checkpoint = die


KILLS = {"between": between, "in-update": in_update, "in-checkpoint": in_checkpoint}
for stage in (2, 3):
    case(f"whole-{stage}", run_on, settings=JUMPY, stage=stage, name=f"whole-{stage}")
    for where, kill in KILLS.items():
        name = f"{where}-{stage}"
        case(f"killed-{name}", run_on, settings=JUMPY, stage=stage, name=name, kill=kill)
        case(f"resumed-{name}", run_on, settings=JUMPY, stage=stage, name=name)

OTHER = LossScaling(init_scale=2.0**9, growth_interval=5, hysteresis=1, max_scale=2.0**9)
RESTART = LossScaling(init_scale=2.0**4)


def copied(rank: int, *, source: str, name: str, **options: Any) -> Result:
    """Go on from another case's checkpoints."""
    if rank == 0:
        shutil.copytree(folder() / f"checkpoints-{source}", folder() / f"checkpoints-{name}")
    dist.barrier()
    return run_on(rank, name=name, **options)


for stage in (2, 3):
    for name, settings in (("other", OTHER), ("restart", RESTART)):
        copy = f"{name}-settings-{stage}"
        case(copy, copied, settings=settings, stage=stage, source=f"whole-{stage}", name=copy, steps=STEPS + 1)

# To and from DeepSpeed's own scaler.

BLOCK = {"fp16": {"initial_scale_power": 9, "loss_scale_window": 2, "hysteresis": 2}}
OTHER_BLOCK = {"fp16": {"initial_scale_power": 4, "loss_scale_window": 7, "hysteresis": 1, "min_loss_scale": 4}}


def without_this_package(rank: int, *, stage: int, **options: Any) -> Result:
    """DeepSpeed reads what we saved, where nothing of ours can be imported."""
    package = DeepSpeedLossScaler.__module__.rpartition(".")[0]
    hidden = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    assert {DeepSpeedLossScaler.__module__, get_loss_scaler.__module__} <= set(hidden), hidden
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    result = copied(rank, stage=stage, **options)
    state_file = next((folder() / f"checkpoints-whole-{stage}" / f"global_step{STEPS}").glob("*optim_states.pt"))
    held = torch.load(state_file, weights_only=False)["optimizer_state_dict"]["loss_scaler"]
    own_file = next((folder() / f"checkpoints-own-{stage}" / f"global_step{STEPS}").glob("*optim_states.pt"))
    own = torch.load(own_file, weights_only=False)["optimizer_state_dict"]["loss_scaler"]
    return result | {
        "held": type(held).__module__,
        "fields": {name: str(value) for name, value in vars(held).items()},
        "stock_fields": list(vars(own)),
    }


def our_file_says_otherwise(rank: int, *, source: str, name: str, **options: Any) -> Result:
    """The readable file counts, not the pickle beside it."""
    if rank == 0:
        shutil.copytree(folder() / f"checkpoints-{source}", folder() / f"checkpoints-{name}")
        path = folder() / f"checkpoints-{name}" / f"global_step{STEPS}" / FILE
        changed = path.read_text().replace('"consecutive": 0', '"consecutive": 3').replace("/1", options.pop("format"))
        path.write_text(changed)
    options.pop("format", None)
    dist.barrier()
    try:
        return run_on(rank, name=name, **options)
    except Exception as error:
        return describe_error(error)


for stage in (2, 3):
    own = f"own-{stage}"
    stock(f"run-{stage}", run_on, stage=stage, name=own, **BLOCK)
    stock(f"other-settings-{stage}", copied, stage=stage, source=own, name=f"stock-other-{stage}", **OTHER_BLOCK)
    name = f"from-stock-{stage}"
    case(name, copied, settings=JUMPY, stage=stage, source=own, name=name, steps=STEPS + 1)
    name = f"to-stock-{stage}"
    stock(name, without_this_package, stage=stage, source=f"whole-{stage}", name=name, steps=STEPS + 1, **BLOCK)
    name = f"edited-{stage}"
    case(name, our_file_says_otherwise, settings=JUMPY, stage=stage, source=f"whole-{stage}", name=name, format="/1")
name = "damaged"
case(name, our_file_says_otherwise, settings=JUMPY, stage=2, source="whole-2", name=name, format="/x")


STATIC = {"fp16": {"loss_scale": 128.0}}
for stage in (2, 3):
    static = f"static-{stage}"
    stock(static, run_on, stage=stage, name=static, **STATIC)
    name = f"from-static-{stage}"
    case(name, copied, settings=JUMPY, stage=stage, source=static, name=name, steps=STEPS + 1)


def module_only(rank: int, *, settings: LossScaling) -> Result:
    """Weights alone are a new start of the scale."""
    engine = new_engine(2, settings, schedule=True)
    engine.load_checkpoint(str(folder() / "checkpoints-whole-2"), load_module_only=True)
    return {"scale": scale_of(engine), "updates": get_loss_scaler(engine).counts.updates}


case("module-only", module_only, settings=JUMPY)
