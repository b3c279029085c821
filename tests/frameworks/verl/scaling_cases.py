# SPDX-License-Identifier: Apache-2.0
"""Cases for test_loss_scaling.py: faults, skips, checkpoints and kills on verl's own engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from engine_building import digest, finite, local, new_batch, new_engine
from engine_ranks import Result, describe_error
from engine_registry import STRATEGIES, Loss, case, folder, model, stock, train

from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision

JUMPY = Precision(loss_scaling=LossScaling(init_scale=2.0**17, growth_interval=2))
"""Overflows first and grows soon: every kind of step occurs within a few updates."""


def spoil(engine: Any, rank: int, bad: float = float("nan")) -> None:
    """Put one bad number into the last rank's gradients, right before the next optimizer step."""
    original = engine.optimizer_step

    def optimizer_step() -> Any:
        del engine.optimizer_step
        gradients = [local(p.grad) for p in engine.module.parameters() if p.grad is not None]
        if rank == torch.distributed.get_world_size() - 1:
            gradients[0].view(-1)[0] = bad
        return original()

    engine.optimizer_step = optimizer_step


def skip_then_step(rank: int, *, strategy: str, **settings: Any) -> Result:
    """Make an update that overflows, then a finite one, with the LR schedule that verl steps after each."""
    engine = new_engine(model(), strategy, "fp16", **settings)
    train(engine, rank)
    engine.lr_scheduler_step()
    seen = []
    for bad in (True, False):
        before = {"weights": digest(engine), "steps": steps_of(engine), "lr": engine.lr_scheduler.last_epoch}
        if bad:
            spoil(engine, rank)
        metrics = train(engine, rank)
        lr = engine.lr_scheduler_step()
        after = {"weights": digest(engine), "steps": steps_of(engine), "lr": engine.lr_scheduler.last_epoch}
        changed = [name for name in before if before[name] != after[name]]
        seen.append({"metrics": metrics, "changed": changed, "lr": lr})
    return {"updates": seen}


def steps_of(engine: Any) -> list[float]:
    return sorted({float(state["step"]) for state in engine.optimizer.state.values()})


def nan_loss(engine: Any) -> Callable[..., Any]:
    loss = Loss(engine)

    def spoilt(model_output: Any, data: Any, dp_group: Any = None) -> Any:
        value, metrics = loss(model_output, data, dp_group)
        return value * float("nan"), metrics

    return spoilt


def many_nans(rank: int) -> Result:
    """Make 200 NaN updates, then a good one. Return the scale and whether the weights are finite."""
    engine = new_engine(model(), "fsdp2", "fp16")
    train(engine, rank)
    for _ in range(200):  # without the forward and backward that would make the NaNs
        for parameter in engine.module.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        engine.optimizer_step()
    scale = engine.scaler.get_scale()
    metrics = train(engine, rank)
    return {"scale": scale, "finite": finite(engine), "metrics": metrics}


def too_many_skips(rank: int, *, strategy: str) -> Result:
    """Train with a NaN loss until the run stops with an error."""
    engine = new_engine(model(), strategy, "fp16")
    loss = nan_loss(engine)
    before, done = digest(engine), 0
    try:
        for _ in range(10):
            train(engine, rank, loss)
            done += 1
    except Exception as error:
        return {
            "done": done,
            **describe_error(error),
            "changed": digest(engine) != before,
            "scale": engine.scaler.get_scale(),
        }
    return {"done": done}


def traced(rank: int, *, strategy: str) -> Result:
    """Make three updates. With ``trace_update=2`` the second is traced, which must not change it."""
    engine = new_engine(model(), strategy, "fp16")
    losses = [train(engine, rank)["grad_norm"] for _ in range(3)]
    return {"grad_norms": losses, "weights": digest(engine)}


for strategy in STRATEGIES:
    case(f"skip-{strategy}", partial(skip_then_step, strategy=strategy))
    short = Precision(loss_scaling=LossScaling(max_consecutive_skips=3))
    case(f"too-many-skips-{strategy}", partial(too_many_skips, strategy=strategy), precision=short)
    case(f"traced-{strategy}", partial(traced, strategy=strategy), precision=Precision(trace_update=2))
    case(f"not-traced-{strategy}", partial(traced, strategy=strategy))
case("many-nans", many_nans)
stock("many-nans", many_nans)
stock("skip-fsdp2", partial(skip_then_step, strategy="fsdp2"))


LORA = {"lora_rank": 4, "target_modules": "all-linear"}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    # ranks, settings of skip_then_step
    "alone": (1, {"strategy": "fsdp2"}),
    "hsdp": (4, {"strategy": "fsdp2", "fsdp_size": 2}),
    "hsdp-fsdp1": (4, {"strategy": "fsdp", "fsdp_size": 2}),
    "replicated": (2, {"strategy": "fsdp2", "fsdp_size": 1}),
    "orig-params": (2, {"strategy": "fsdp", "use_orig_params": True}),
    "offload-policy": (2, {"strategy": "fsdp2", "offload_policy": True}),
    "offloaded": (2, {"strategy": "fsdp2", "param_offload": True, "optimizer_offload": True}),
    "offloaded-fsdp1": (2, {"strategy": "fsdp", "param_offload": True, "optimizer_offload": True}),
    "no-sync": (2, {"strategy": "fsdp2", "use_no_sync_for_gradient_accumulation": True}),
    "lora": (2, {"strategy": "fsdp2", "lora": LORA}),
    "lora-fsdp1": (2, {"strategy": "fsdp", "lora": LORA}),
    "fused": (2, {"strategy": "fsdp2", "optimizer": {"override_optimizer_config": {"fused": True}}}),
    "sgd": (2, {"strategy": "fsdp2", "optimizer": {"optimizer": "SGD"}}),
}
for name, (ranks, settings) in LAYOUTS.items():
    case(f"layout-{name}", partial(skip_then_step, **settings), ranks=ranks)
    stock(f"layout-{name}", partial(skip_then_step, **settings), ranks=ranks)


STEPS = 8


def save(engine: Any, path: Path, step: int) -> None:
    """Save as verl's trainer does: the engine's checkpoint, then the tracker that names it the latest."""
    engine.save_checkpoint(str(path / f"global_step_{step}"), global_step=step)
    if engine.rank == 0:
        (path / "latest").write_text(str(step))
    torch.distributed.barrier()


def run_on(rank: int, *, strategy: str, name: str, kill: Callable[[Any, int], None] | None = None) -> Result:
    """Train to the end from the latest checkpoint of ``name``, saving after every update."""
    path = folder() / f"checkpoints-{name}"
    path.mkdir(exist_ok=True)
    engine = new_engine(model(), strategy, "fp16")
    start = 0
    if (path / "latest").exists():
        start = int((path / "latest").read_text())
        engine.load_checkpoint(str(path / f"global_step_{start}"), del_local_after_load=False)
    resumed_at = engine.scaler.get_scale()
    steps: dict[str, Any] = {}
    for step in range(start + 1, STEPS + 1):
        if kill is not None:
            kill(engine, step)
        if step == 2:
            spoil(engine, rank)
        with engine.train_mode():
            outputs = engine.train_batch(new_batch(rank), Loss(engine))
        engine.lr_scheduler_step()
        steps[str(step)] = {
            "scale": engine.scaler.get_scale(),
            "norm": outputs["metrics"].get("grad_norm"),
            "loss": [float(loss) for loss in outputs["loss"]],
            "lr": engine.lr_scheduler.last_epoch,
            "weights": digest(engine),
        }
        save(engine, path, step)
    return {"start": start, "resumed_at": resumed_at, "steps": steps}


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_update(engine: Any, step: int) -> None:
    """Kill in the middle of the optimizer step: one parameter has moved."""
    if step == 5:
        engine.optimizer.register_step_pre_hook(lambda optimizer, *_: move_one_and_die(optimizer))


def move_one_and_die(optimizer: Any) -> None:
    local(optimizer.param_groups[0]["params"][0]).add_(1.0)
    die()


def in_checkpoint(engine: Any, step: int) -> None:
    """Kill when the scaler's file is written and the model's is half written."""
    if step == 5:
        engine.checkpoint_manager.get_rng_state = die


def between(engine: Any, step: int) -> None:
    if step == 5:
        die()


KILLS = {"in-update": in_update, "in-checkpoint": in_checkpoint, "between": between}

for strategy in STRATEGIES:
    run = partial(run_on, strategy=strategy)
    case(f"uninterrupted-{strategy}", partial(run, name=f"whole-{strategy}"), precision=JUMPY)
    for where, kill in KILLS.items():
        name = f"{where}-{strategy}"
        case(f"killed-{name}", partial(run, name=name, kill=kill), precision=JUMPY)
        case(f"resumed-{name}", partial(run, name=name), precision=JUMPY)
stock("uninterrupted-fsdp2", partial(run_on, strategy="fsdp2", name="whole"))
stock("killed-between-fsdp2", partial(run_on, strategy="fsdp2", name="between", kill=between))
stock("resumed-between-fsdp2", partial(run_on, strategy="fsdp2", name="between"))


@contextmanager
def errors() -> Any:
    caught: list[Result] = []
    try:
        yield caught
    except Exception as error:
        caught.append(describe_error(error))


def other_checkpoints(rank: int) -> Result:
    """Load without the scaler's file, which warns, and with a damaged one, which is refused."""
    engine = new_engine(model(), "fsdp2", "fp16")
    train(engine, rank)
    path = folder() / "other-checkpoint"
    engine.save_checkpoint(str(path), global_step=1)
    trained, scale = digest(engine), engine.scaler.get_scale()
    train(engine, rank)
    later = digest(engine)
    torch.distributed.barrier()
    saved = path / "loss_scaler.json"
    if rank == 0:
        saved.write_text('{"scale": 0}')
    torch.distributed.barrier()
    with errors() as damaged:
        engine.load_checkpoint(str(path))
    untouched = digest(engine) == later
    torch.distributed.barrier()
    if rank == 0:
        saved.unlink()
    torch.distributed.barrier()
    with errors() as missing:
        engine.load_checkpoint(str(path))
    return {
        "damaged": damaged,
        "untouched": untouched,
        "missing": missing,
        "loaded": digest(engine) == trained,
        "scale": [scale, engine.scaler.get_scale()],
    }


def rescaled(rank: int, *, name: str) -> Result:
    """Load a scaler's state on another number of ranks, which verl's own shards do not support."""
    from fp16_patch.loss_scaling import state_file as state

    engine = new_engine(model(), "fsdp2", "fp16")
    saved = state.load(folder() / f"checkpoints-{name}" / f"global_step_{STEPS}" / state.FILE)
    assert saved is not None
    engine.scaler.load_state_dict(saved)
    before = engine.scaler.get_scale()
    metrics = train(engine, rank)
    return {"saved": saved["scale"], "scale": before, "used": metrics["loss_scale"]}


case("other-checkpoints", other_checkpoints, precision=JUMPY)
case("rescaled", partial(rescaled, name="whole-fsdp2"), ranks=1, precision=JUMPY)
case(
    "new-settings",
    partial(run_on, strategy="fsdp2", name="whole-fsdp2"),
    precision=Precision(loss_scaling=LossScaling(init_scale=2.0**10)),
)
