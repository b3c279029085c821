# SPDX-License-Identifier: Apache-2.0
"""Cases for test_megatron_with_the_flag.py: faults, skips, checkpoints and the stop, on verl's own engine."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from engine_ranks import Result, describe_error
from megatron_building import adam_steps, digest, exported, new_engine, optimizers, scales
from megatron_registry import LAYOUTS, LENGTHS, case, folder, model, train
from stock_cases import norms_into, spoil
from verl.workers.utils.losses import sft_loss

from fp16_patch.frameworks.verl.loss_check import losses_of
from fp16_patch.frameworks.verl.trainer_megatron import describe_engine
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.precision import Precision

JUMPY = Precision(loss_scaling=LossScaling(init_scale=2.0**17, growth_interval=2))
"""Overflows first and grows soon: every kind of step occurs within a few updates."""
TOO_HIGH = Precision(loss_scaling=LossScaling(init_scale=2.0**31, max_consecutive_skips=3))
"""The toy's gradients overflow at this scale, and at the two below."""
GENTLE = {"adam_eps": 1.0}
"""Adam's updates in proportion to the gradients, so that rounding moves weights by rounding and not by whole steps."""


def engine_of(layout: str, **settings: Any) -> Any:
    """Return an engine that is configured as the flag does it."""
    router = {"moe_router_dtype": "fp32"} if layout.startswith("moe") else {}
    return new_engine(model(layout), "fp16", **LAYOUTS[layout][1], transformer=router, **settings)


def state(engine: Any) -> dict[str, Any]:
    return {"weights": digest(engine), "steps": adam_steps(engine), "lr": engine.lr_scheduler.num_steps}


def update(engine: Any, seed: int = 0, loss: Any = None) -> dict[str, Any]:
    """Return what was reported, what has changed, and the scales of all optimizers afterwards."""
    before = state(engine)
    metrics = train(engine, seed, loss).get("metrics", {})
    after = state(engine)
    return {
        "metrics": {name: value for name, value in metrics.items() if name != "loss"},
        "changed": sorted(name for name in before if before[name] != after[name]),
        "scales": scales(engine),
    }


def skip_then_step(rank: int, *, layout: str, experts: bool = False) -> Result:
    """Make a good update, one with infinities on the last rank, and a good one."""
    engine = engine_of(layout)
    seen = [update(engine)]
    spoil(engine, rank, experts=experts)
    seen += [update(engine), update(engine)]
    return {"updates": seen, "report": describe_engine(engine)}


def late_overflow(rank: int, *, layout: str) -> Result:
    """Make the last micro-batch's loss infinite, on the last rank that has one."""
    engine = engine_of(layout)
    seen, calls = [update(engine)], []
    micro_batches = len(LENGTHS) // engine.get_data_parallel_size() // 2

    def loss(**batch: Any) -> Any:
        value, metrics = sft_loss(None, **batch)
        calls.append(1)
        last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        return (value * float("inf") if last and len(calls) == micro_batches else value), metrics

    seen += [update(engine, loss=loss), update(engine)]
    return {"updates": seen, "spoilt": len(calls) == micro_batches}


def bad_loss(rank: int, *, layout: str, dtype: str = "fp16") -> Result:
    """Make a good update, one with a NaN loss on the last rank, and a good one."""
    engine = new_engine(model(layout), dtype, **LAYOUTS[layout][1])
    last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1

    def loss(**batch: Any) -> Any:
        value, metrics = sft_loss(None, **batch)
        return value * float("nan") if last else value, metrics

    seen = []
    for bad in (False, True, False):
        before = state(engine)["weights"]
        metrics = train(engine, loss=loss if bad else None).get("metrics", {})
        losses = losses_of(engine)
        seen.append(
            {
                "changed": state(engine)["weights"] != before,
                "not_finite": metrics.get("loss_not_finite"),
                "grad_norm": "grad_norm" in metrics,
                "found": losses.bad_loss is not None,
                "scale": losses.get_scale(),
            }
        )
    return {"updates": seen}


def drift(rank: int) -> Result:
    """Make the same update of the same weights, without and after three overflows of the experts only."""
    found = {}
    for overflows in (0, 3):
        engine = engine_of("moe-ep2", optimizer={"clip_grad": 1e9})
        for _ in range(overflows):
            spoil(engine, rank, experts=True)
            train(engine)
        norms: list[float] = []
        used = scales(engine)
        optimizer = engine.optimizer
        stepping = optimizer.step_with_ready_grads

        def look() -> Any:
            norms_into(norms, engine)  # noqa: B023  called before the next turn
            return stepping()  # noqa: B023

        optimizer.step_with_ready_grads = look
        train(engine)
        found[str(overflows)] = {"scales": used, "norms": norms}
    return found


def weights_after_faults(rank: int, *, layout: str) -> Result:
    """Make four updates with one overflow. Return the whole exported model."""
    engine = engine_of(layout, megatron_optimizer=GENTLE)
    for seed in range(4):
        if seed == 1:
            spoil(engine, rank)
        train(engine, seed)
    sent = exported(engine)
    if rank == 0:
        torch.save(sent, folder() / f"weights-{layout}.pt")
    return {"scales": scales(engine), "steps": adam_steps(engine)}


def masters(rank: int) -> Result:
    """Compare the exported weights with the trained FP32 weights rounded once."""
    engine = engine_of("1")
    for seed in range(3):
        train(engine, seed)
    wrong, apart = [], 0
    for part in optimizers(engine):
        for held, copies in zip(part.model_float16_groups, part.shard_fp32_from_float16_groups, strict=True):
            for parameter, copy in zip(held, copies, strict=True):
                rounded = copy.detach().half().view(-1)
                wrong.append(int((parameter.detach().view(-1) != rounded).sum()))
                apart += int((copy.detach().view(-1) != rounded.float()).sum())
    sent = {str(weight.dtype) for weight in exported(engine).values()}
    return {"wrong": sum(wrong), "apart": apart, "sent": sorted(sent)}


def resumed(rank: int, *, layout: str) -> Result:
    """Make the updates after a checkpoint, with overflows, by the engine that wrote it and one that read it."""
    path = str(folder() / f"flag-checkpoint-{layout}")
    settings = {"optimizer": {"use_checkpoint_opt_param_scheduler": True}}  # else verl starts the schedule anew
    engine = engine_of(layout, **settings)
    for seed in range(3):
        if seed == 1:
            spoil(engine, rank)
        train(engine, seed)
    engine.save_checkpoint(path, global_step=3)
    saved = engine.scaler.rule.state_dict()
    on = [update(engine, seed) | state(engine) for seed in range(3, 8)]
    other = engine_of(layout, **settings)
    other.load_checkpoint(path, del_local_after_load=False)
    loaded = other.scaler.rule.state_dict()
    again = [update(other, seed) | state(other) for seed in range(3, 8)]
    return {"saved": saved, "loaded": loaded, "uninterrupted": on, "resumed": again}


def saved_by_two(rank: int) -> Result:
    """Write a checkpoint of two data-parallel ranks, for :func:`loaded_by_one`."""
    engine = engine_of("dp2")
    for seed in range(3):
        if seed == 1:
            spoil(engine, rank)
        train(engine, seed)
    engine.save_checkpoint(str(folder() / "of-two"), global_step=3)
    on = [update(engine, seed) for seed in range(3, 6)]
    return {"scaler": engine.scaler.rule.state_dict(), "updates": on}


def loaded_by_one(rank: int) -> Result:
    engine = engine_of("1")
    engine.load_checkpoint(str(folder() / "of-two"), del_local_after_load=False)
    on = [update(engine, seed) for seed in range(3, 6)]
    return {"scaler": engine.scaler.rule.state_dict(), "updates": on}


def critic(rank: int) -> Result:
    """Train a value model: a good update, a spoilt one, a good one."""

    def loss(model_output: Any, data: Any, dp_group: Any = None) -> Any:
        values = model_output["values"]
        return (values.values() if values.is_nested else values).square().mean() / 100, {}

    engine = engine_of("1", model_type="value_model")
    seen = [update(engine, loss=loss)]
    spoil(engine, rank)
    seen += [update(engine, loss=loss), update(engine, loss=loss)]
    return {"updates": seen, "report": describe_engine(engine)}


def too_many_skips(rank: int, *, layout: str) -> Result:
    engine = engine_of(layout)
    before, done = digest(engine), 0
    try:
        for _ in range(10):
            train(engine)
            done += 1
    except Exception as error:
        return {
            "done": done,
            **describe_error(error),
            "changed": digest(engine) != before,
            "scales": scales(engine),
        }
    return {"done": done}


def traced(rank: int, *, layout: str) -> Result:
    engine = engine_of(layout)
    norms = [train(engine, seed).get("metrics", {}).get("grad_norm") for seed in range(3)]
    return {"norms": norms, "weights": digest(engine)}


for layout, (ranks, _) in LAYOUTS.items():
    case(f"skip-{layout}", partial(skip_then_step, layout=layout), ranks, Precision())
    case(f"faults-{layout}", partial(weights_after_faults, layout=layout), ranks, Precision())
for layout in ("1", "tp2", "dp2", "moe-ep2"):
    case(f"flag-resumed-{layout}", partial(resumed, layout=layout), LAYOUTS[layout][0], JUMPY)
for layout in ("1", "pp2", "dp2"):
    case(f"late-{layout}", partial(late_overflow, layout=layout), LAYOUTS[layout][0], Precision())
for layout in ("dp2", "pp2"):
    case(f"bad-loss-{layout}", partial(bad_loss, layout=layout), 2, Precision())
case("bad-loss-bf16-dp2", partial(bad_loss, layout="dp2", dtype="bf16"), 2, Precision("bf16", "bf16"))
case("skip-experts", partial(skip_then_step, layout="moe-ep2", experts=True), 2, Precision())
case("drift", drift, 2, Precision())
case("saved-by-two", saved_by_two, 2, Precision())
case("loaded-by-one", loaded_by_one, 1, Precision())
case("critic", critic, 1, Precision())
case("masters", masters, 1, Precision())
case("too-many-skips", partial(too_many_skips, layout="pp2"), 2, TOO_HIGH)
case("traced", partial(traced, layout="pp2"), 2, Precision(trace_update=2))
case("not-traced", partial(traced, layout="pp2"), 2, Precision())
