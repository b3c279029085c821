# SPDX-License-Identifier: Apache-2.0
"""Growth, overflow, bounds, the stop, the trace, and what is refused."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from engine_ranks import Result, describe_error
from zero_building import Seen, backward, digest, new_engine, norm_of, scale_of, spoilt, train
from zero_registry import STAGES, case, stock

from fp16_patch import envs
from fp16_patch.engines.deepspeed.replay import remember, trace_if_asked
from fp16_patch.engines.deepspeed.step import get_loss_scaler, last_update, losses_of
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.loss_check import BadLoss
from fp16_patch.loss_scaling.scale_rule import ScaleRule
from fp16_patch.loss_scaling.update import describe
from fp16_patch.precision import Precision

FP16_SUMS = {"data_types": {"grad_accum_dtype": "fp16"}}
"""ZeRO-1 averages no FP32 ones."""
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}


def options(stage: int) -> dict[str, Any]:
    return {"stage": stage, **(FP16_SUMS if stage == 1 else {})}


def like(settings: LossScaling | None, **block: Any) -> dict[str, Any]:
    """Stock gets as its own configuration what the case is about."""
    return {"fp16": block} if settings is None else {}


GROWING = LossScaling(init_scale=2.0**8, growth_interval=2)


def growth(rank: int, *, settings: LossScaling | None, stage: int, **engine_options: Any) -> Result:
    """The same batch again and again with weights that do not move: every update sees the same gradient."""
    block = like(settings, initial_scale_power=8, loss_scale_window=2, hysteresis=1)
    engine = new_engine(stage, settings, lr=0.0, **block, **engine_options)
    seen = Seen(engine)
    scales, norms, updates = [], [], []
    for _ in range(8):
        scales.append(scale_of(engine))
        train(engine)
        seen.after_step()
        norms.append(norm_of(engine))
        updates.append(vars(last_update(engine)) if settings else None)
    return {"scales": scales, "norms": norms, "seen": seen.norms, "updates": updates}


GROWTHS: dict[str, dict[str, Any]] = {
    "1": options(1),
    "2": options(2),
    "3": options(3),
    "2-offload": {"stage": 2, "offload": True},
    "3-offload": {"stage": 3, "offload": True},
    "2-clipped": {"stage": 2, "clip": 0.5},
    "3-clipped": {"stage": 3, "clip": 0.5},
    "2-overlapped": {"stage": 2, "zero_optimization": {"overlap_comm": True}},
}
for name, chosen in GROWTHS.items():
    case(f"growth-{name}", growth, settings=GROWING, **chosen)
    stock(f"growth-{name}", growth, **chosen)


def unreduced(rank: int, *, settings: LossScaling | None, **engine_options: Any) -> Result:
    """ZeRO-1's gradient with FP32 sums, which should be that with FP16 sums."""
    engine = new_engine(1, settings, lr=0.0, **engine_options)
    seen = Seen(engine)
    train(engine)
    seen.after_step()
    return {"seen": seen.norms, "reported": norm_of(engine)}


stock("unreduced-fp16", unreduced, fp16={"initial_scale_power": 8}, **FP16_SUMS)
stock("unreduced-fp32", unreduced, fp16={"initial_scale_power": 8}, **FP32_SUMS)


def sums(rank: int, *, settings: LossScaling | None, stage: int, **engine_options: Any) -> Result:
    """One large micro-batch and 15 small ones: what of the small ones arrives."""
    block = like(settings, initial_scale_power=8)
    engine = new_engine(stage, settings, lr=0.0, accumulate=16, **block, **engine_options)
    seen = Seen(engine)
    for number in range(16):
        backward(engine, 16.0 if number == 0 else 0.003, seed=0)
        engine.step()
    seen.after_step()
    alone = new_engine(stage, settings, lr=0.0, **block)
    backward(alone, (16.0 + 15 * 0.003) / 16, seed=0)
    alone.step()
    return {"seen": seen.norms[-1], "exact": norm_of(alone), "large": norm_of(alone) * 16 / (16 + 15 * 0.003)}


for stage in (2, 3):
    case(f"sums-{stage}", sums, settings=LossScaling(init_scale=2.0**8), stage=stage)
    stock(f"sums-{stage}", sums, stage=stage)
    stock(f"sums-{stage}-fp32", sums, stage=stage, **FP32_SUMS)


def skip_then_step(rank: int, *, settings: LossScaling | None, stage: int, **engine_options: Any) -> Result:
    """A good update, one that cannot be made because of one rank, a good one."""
    engine = new_engine(stage, settings, schedule=True, **like(settings, initial_scale_power=8), **engine_options)
    updates = []
    for factor in (1.0, spoilt(rank), 1.0):
        before = {"weights": digest(engine), "lr": engine.lr_scheduler.last_batch_iteration}
        scale = scale_of(engine)
        train(engine, factor)
        after = {"weights": digest(engine), "lr": engine.lr_scheduler.last_batch_iteration}
        update = last_update(engine)
        updates.append(
            {
                "changed": [name for name in before if before[name] != after[name]],
                "scales": [scale, scale_of(engine)],
                "norm": norm_of(engine),
                "update": vars(update) if update else None,
                "metrics": describe(update, get_loss_scaler(engine).counts) if update else None,
            }
        )
    return {"updates": updates}


for stage in STAGES:
    case(f"skip-{stage}", skip_then_step, settings=LossScaling(init_scale=2.0**8), **options(stage))
    stock(f"skip-{stage}", skip_then_step, **options(stage))
case("skip-2-offload", skip_then_step, settings=LossScaling(init_scale=2.0**8), stage=2, offload=True)
case("skip-3-offload", skip_then_step, settings=LossScaling(init_scale=2.0**8), stage=3, offload=True)


def bad_loss(rank: int, *, settings: LossScaling, stage: int, dtype: str = "fp16", **engine_options: Any) -> Result:
    """A good update, one whose loss is NaN on the last rank before it is scaled, an overflow of that rank, a good one.

    In BF16 there is no overflow.
    """
    engine = new_engine(stage, settings, dtype=dtype, schedule=True, **engine_options)
    found: Result = {"optimizer": type(engine.optimizer).__name__, "norms": []}
    last = rank == torch.distributed.get_world_size() - 1
    updates = []
    for kind in ("good", "bad loss", *(["overflow"] if dtype == "fp16" else []), "good"):
        before = {"weights": digest(engine), "lr": engine.lr_scheduler.last_batch_iteration}
        if last and kind == "bad loss":
            losses_of(engine).report_bad_loss(BadLoss("advantages", "advantages is not finite", "actor"))
        train(engine, float("nan") if last and kind != "good" else 1.0)
        after = {"weights": digest(engine), "lr": engine.lr_scheduler.last_batch_iteration}
        found["norms"].append(norm_of(engine))
        updates.append(
            {
                "changed": [name for name in before if before[name] != after[name]],
                "scale": losses_of(engine).get_scale(),
                "bad": losses_of(engine).bad_loss is not None,
            }
        )
    return {"updates": updates, "counts": vars(losses_of(engine).counts), **found}


BF16 = Precision("bf16", "bf16", loss_scaling=LossScaling(init_scale=2.0**8))
for stage in STAGES:
    case(f"bad-loss-{stage}", bad_loss, settings=LossScaling(init_scale=2.0**8), **options(stage))
for stage in (0, 1, 2, 3):
    case(f"bad-loss-bf16-{stage}", bad_loss, precision=BF16, stage=stage, dtype="bf16")
case("bad-loss-bf16-1-fp32-sums", bad_loss, precision=BF16, stage=1, dtype="bf16", **FP32_SUMS)


def fused_bad_loss(rank: int, **options: Any) -> Result:
    """The same without ZeRO for the optimizer that DeepSpeed takes on a GPU. It takes it by the class of Adam."""
    import_module("deepspeed.runtime.engine").FusedAdam = torch.optim.AdamW
    return bad_loss(rank, **options)


case("bad-loss-bf16-0-fused", fused_bad_loss, precision=BF16, stage=0, dtype="bf16")


def health(rank: int, *, settings: LossScaling, stage: int, factor: float) -> Result:
    """The first update, of which every gradient is looked at."""
    engine = new_engine(stage, settings, lr=0.0)
    seen = Seen(engine)
    train(engine, factor)
    update = last_update(engine)
    numbers = torch.tensor([seen.peak, -float(seen.nonzero)], dtype=torch.float64)
    everyone = [torch.empty_like(numbers) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, numbers)
    return {
        "headroom": update.headroom_bits,
        "share": update.underflow_share,
        "peak": max(float(row[0]) for row in everyone),
        "nonzero": -sum(int(row[1]) for row in everyone),
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters()),
    }


for stage in (2, 3):
    case(f"health-{stage}", health, settings=LossScaling(init_scale=2.0**8), stage=stage, factor=1.0)
    case(f"health-small-{stage}", health, settings=LossScaling(init_scale=2.0**8), stage=stage, factor=2e-9)


PATTERN = "..x.xx...xxx....x........xx.x..."
RULE = LossScaling(
    init_scale=2.0**6, growth_interval=3, hysteresis=2, min_scale=2.0**4, max_scale=2.0**8, backoff_factor=0.25
)


def sequence(rank: int, *, settings: LossScaling, stage: int) -> Result:
    """A real engine through overflows and good updates, beside the rule alone."""
    engine, rule = new_engine(stage, settings), ScaleRule(settings)
    scales, expected = [], []
    for letter in PATTERN:
        train(engine, float("nan") if letter == "x" else 1.0)
        rule.update(skipped=letter == "x")
        scales.append(scale_of(engine))
        expected.append(rule.scale)
    ours = get_loss_scaler(engine)
    return {"scales": scales, "expected": expected, "state": ours.state_dict(), "rule": rule.state_dict()}


for stage in (2, 3):
    case(f"sequence-{stage}", sequence, settings=RULE, stage=stage)


def accumulated(rank: int, *, settings: LossScaling) -> Result:
    """Only every second step() is an update."""
    engine = new_engine(2, settings, accumulate=2)
    made = []
    for _ in range(4):
        train(engine)
        made.append(last_update(engine) is not None)
    return {"made": made, "updates": get_loss_scaler(engine).counts.updates}


case("accumulated", accumulated, settings=LossScaling(init_scale=2.0**8))


# The end: too many skips, the floor, the ceiling.


def too_many(
    rank: int, *, settings: LossScaling | None, stage: int, kept: bool = True, factor: float = float("nan")
) -> Result:
    """Nothing but bad batches."""
    engine = new_engine(stage, settings, **like(settings, initial_scale_power=2, hysteresis=1))
    before, done, error = digest(engine), 0, {}
    try:
        for _ in range(20):
            if settings is not None and kept:
                remember(engine, lambda: backward(engine, factor), role="critic", in_bf16="train in BF16: --x bf16")
            train(engine, factor)
            done += 1
    except Exception as raised:
        error = describe_error(raised)
    return {
        "done": done,
        **error,
        "scale": scale_of(engine),
        "changed": digest(engine) != before,
    }


SHORT = LossScaling(init_scale=2.0**2, max_consecutive_skips=4)
for stage in (2, 3):
    case(f"too-many-{stage}", too_many, settings=SHORT, stage=stage)
case("too-many-not-kept", too_many, settings=SHORT, stage=2, kept=False)
case("too-many-large", too_many, settings=LossScaling(max_consecutive_skips=1), stage=2, factor=3e3)
case("too-many-large-3", too_many, settings=LossScaling(max_consecutive_skips=1), stage=3, factor=3e3)
stock("too-many-2", too_many, stage=2)


def spoilt_weight(rank: int, *, settings: LossScaling, stage: int) -> Result:
    """What a diagnosis finds where a weight is NaN already."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    engine = new_engine(stage, settings)
    weight = engine.module.second.weight
    with GatheredParameters([weight], modifier_rank=0, enabled=stage == 3), torch.no_grad():
        weight.view(-1)[3] = float("nan")
    remember(engine, lambda: backward(engine), role="actor")
    try:
        train(engine)
    except Exception as raised:
        return describe_error(raised)
    return {}


for stage in (2, 3):
    case(f"spoilt-weight-{stage}", spoilt_weight, settings=LossScaling(max_consecutive_skips=1), stage=stage)


def ceiling(rank: int, *, settings: LossScaling | None) -> Result:
    engine = new_engine(2, settings, lr=0.0, **like(settings, initial_scale_power=8, loss_scale_window=1))
    scales = []
    for _ in range(12):
        train(engine, 1e-6)
        scales.append(scale_of(engine))
    return {"scales": scales}


case("ceiling", ceiling, ranks=1, settings=LossScaling(init_scale=2.0**8, growth_interval=1, max_scale=2.0**10))
stock("ceiling", ceiling, ranks=1)


def traced(rank: int, *, settings: LossScaling, stage: int, reports: str) -> Result:
    """The second update traced on request must be the update it would have been."""
    os.environ[envs.REPORTS] = f"{os.environ[envs.REPORTS]}/{reports}"
    engine = new_engine(stage, settings, accumulate=2)
    norms, done = [], []
    for _ in range(6):
        done.append(trace_if_asked(engine, get_loss_scaler(engine), lambda: backward(engine), role="actor"))
        if not done[-1]:
            backward(engine)
        engine.step()
        norms.append(norm_of(engine))
    torch.distributed.barrier()
    written = {path.name: path.read_text() for path in sorted(Path(os.environ[envs.REPORTS]).glob("*.json"))}
    rows = {name: len(json.loads(text)["modules"]) for name, text in written.items()}
    return {"norms": norms, "done": done, "weights": digest(engine), "reports": rows}


for stage in (2, 3):
    for name, update in (("traced", 2), ("untraced", None)):
        asked = Precision(loss_scaling=LossScaling(init_scale=2.0**8), trace_update=update)
        case(f"{name}-{stage}", traced, precision=asked, stage=stage, reports=f"{name}-{stage}")


# What is left alone, what is refused.


def untouched(rank: int, *, settings: LossScaling | None, dtype: str) -> Result:
    engine = new_engine(2, settings, dtype=dtype)
    train(engine)
    loss_scaler = type(engine.optimizer.loss_scaler)
    return {"scaler": f"{loss_scaler.__module__}.{loss_scaler.__name__}", "update": last_update(engine)}


case("bf16-under-fp16", untouched, ranks=1, dtype="bf16")
case("bf16", untouched, ranks=1, precision=Precision("bf16", "bf16"), dtype="bf16")


def reference(rank: int, *, settings: LossScaling) -> Result:
    """An engine without an optimizer, as references are."""
    import deepspeed
    from zero_building import Net, inputs

    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 0}, "fp16": {"enabled": True}}
    engine = deepspeed.initialize(model=Net(), config=config)[0]
    return {"finite": bool(engine(inputs(0)).isfinite()), "scaler": get_loss_scaler(engine)}


case("reference", reference, ranks=1)


def refused(rank: int, *, settings: LossScaling | None, stage: int, **engine_options: Any) -> Result:
    try:
        new_engine(stage, settings, **engine_options)
    except Exception as raised:
        return describe_error(raised)
    return {}


REFUSED: dict[str, dict[str, Any]] = {
    "stage-0": {"stage": 0, "ranks": 1, **FP16_SUMS},
    "static": {"stage": 2, "ranks": 1, "fp16": {"loss_scale": 128.0}},
    "fp16-sums": {"stage": 2, "ranks": 1, "accumulate": 2, **FP16_SUMS},
    "stage-1-fp32-sums": {"stage": 1, "ranks": 2},
    "offloaded-sums": {"stage": 2, "ranks": 1, "accumulate": 2, "offload": True},
    "loco": {"stage": 3, "ranks": 1, "zero_optimization": {"zeropp_loco_param": {"err_beta": 0.8, "reset_T": 1024}}},
    "several": {"stage": 0, "ranks": 1, "accumulate": 2, "fp16": {"loss_scale": 128.0}, **FP16_SUMS},
}
for name, chosen in REFUSED.items():
    case(f"refused-{name}", refused, **chosen)


def block(rank: int, *, settings: LossScaling) -> Result:
    """What DeepSpeed itself makes of the configuration written for it."""
    engine = new_engine(2, settings)
    read = engine._config.float16_config.model_dump()
    return {"read": read, "made": engine.dynamic_loss_scale_args()}


case("block", block, ranks=1, settings=RULE)
