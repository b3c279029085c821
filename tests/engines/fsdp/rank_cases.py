# SPDX-License-Identifier: Apache-2.0
"""Cases for test_ranks.py. Run as ``python rank_cases.py FOLDER``, which writes their results there."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engine_ranks import Case, Result, run_all
from rank_models import Training, norm

from fp16_patch.engines.fsdp.step import clip_and_step
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling.loss_check import BadLoss
from fp16_patch.precision.loss_scaling import LossScaling

CASES: dict[str, Case] = {}
SETTINGS = LossScaling(init_scale=2.0**8)
"""Low enough for FP16 gradients of this loss."""


def case(name: str, run: Callable[..., Result], ranks: int, **options: Any) -> None:
    CASES[name] = Case(partial(run, **options), ranks, None)


def against_unsharded(rank: int, *, wrap: str, max_norm: float, **options: Any) -> Result:
    """Three updates, each made again by torch on the gradients of all ranks put together."""
    training = Training(wrap, rank, SETTINGS, **options)
    tells_apart = wrap != "fsdp1"  # it holds one flat parameter
    copies = [torch.nn.Parameter(weight) for weight in training.whole("data")]
    theirs = torch.optim.AdamW(copies, lr=1e-2, weight_decay=0.1)
    updates = []
    for _ in range(3):
        training.backward()
        gradients = [gradient / SETTINGS.init_scale for gradient in training.whole("grad")]
        update = clip_and_step(training.scaler, training.optimizer, max_norm)
        updates.append(
            {
                "skipped": update.skipped,
                "norm": update.grad_norm,
                "exact": norm(gradients),
                "peak": update.statistics.peak,
                "exact_peak": SETTINGS.init_scale * max(float(g.abs().max()) for g in gradients),
                "weights": training.bits(),
            }
        )
        if tells_apart:
            for copy, gradient in zip(copies, gradients, strict=True):
                copy.grad = gradient
            torch.nn.utils.clip_grad_norm_(copies, max_norm)
            theirs.step()
            pairs = zip(training.whole("data"), copies, strict=True)
            updates[-1]["error"] = max(float((ours - copy.detach()).abs().max()) for ours, copy in pairs)
    return {"updates": updates, "held": sum(local.numel() for local in training.gradients())}


UNSHARDED = [
    *[("fsdp2-layers", ranks, {}) for ranks in (1, 2, 4)],
    ("fsdp2", 2, {"fused": True}),
    ("fsdp2", 2, {"sync_every": False}),
    ("fsdp2-one-row", 4, {}),
    ("fsdp2-one-row", 2, {"fused": True}),
    ("fsdp2-offload", 2, {}),
    ("hsdp", 4, {"sync_every": False}),
    ("fsdp2-tp", 4, {}),
    ("replicated", 2, {}),
    ("fsdp1", 2, {}),
    ("fsdp1-original", 4, {}),
    ("fsdp1-original", 2, {"sync_every": False}),
    ("fsdp1-hybrid", 4, {}),
]


def named(wrap: str, ranks: int, options: dict[str, Any]) -> str:
    return "-".join([wrap, str(ranks), *(f"{key}={value}" for key, value in options.items())])


for wrap, ranks, options in UNSHARDED:
    name = f"unsharded-{named(wrap, ranks, options)}"
    case(name, against_unsharded, ranks, wrap=wrap, max_norm=0.1, **options)
case("unsharded-fsdp2-unclipped", against_unsharded, 2, wrap="fsdp2", max_norm=1e6)


VALUES = (math.inf, -math.inf, math.nan)


def faults(rank: int, *, wrap: str, **options: Any) -> Result:
    """One bad value on one rank, in one micro-batch's loss or in one parameter's gradient, everywhere in turn."""
    training = Training(wrap, rank, SETTINGS, **options)
    training.backward()
    clip_and_step(training.scaler, training.optimizer, 1.0)
    ranks, parameters = dist.get_world_size(), len(list(training.model.parameters()))
    tries = []
    places = [("loss", micro) for micro in range(2)] + [("gradient", number) for number in range(parameters)]
    for number, (where, index) in enumerate(places):
        for bad in range(ranks):
            value = VALUES[(number + bad) % len(VALUES)]
            before = training.own_bits()
            hit = inject(training, where, index, value if rank == bad else None)
            scale = training.scaler.get_scale()
            update = clip_and_step(training.scaler, training.optimizer, 1.0)
            outcome = {
                "fault": f"{value} in {where} {index} of rank {bad}",
                "hit": hit,
                "skipped": update.skipped,
                "norm": update.grad_norm,
                "changed": training.own_bits() != before,
                "scales": [scale, training.scaler.get_scale()],
            }
            training.backward()
            after = clip_and_step(training.scaler, training.optimizer, 1.0)
            tries.append(outcome | {"recovered": not after.skipped, "finite": training.finite()})
            training.scaler.update(SETTINGS.init_scale)  # or it ends at the floor after eight
    return {"tries": tries, "weights": training.bits()}


def inject(training: Training, where: str, index: int, value: float | None) -> bool:
    """A backward with this value in it on this rank (None: on another); whether any rank held a place for it."""
    factors = [1.0, 1.0]
    if where == "loss" and value is not None:
        factors[index] = value
    training.backward(tuple(factors))
    if where == "loss":
        return True
    gradient = list(training.model.parameters())[index].grad
    part = None if gradient is None else gradient.to_local() if hasattr(gradient, "to_local") else gradient
    hit = torch.tensor(float(value is not None and part is not None and part.numel() > 0))
    if hit:
        part.view(-1)[-1] = value
    dist.all_reduce(hit, dist.ReduceOp.MAX)
    return bool(hit)


FAULTS = [
    ("fsdp2-layers", 2, {}),
    ("fsdp2", 4, {"sync_every": False}),
    ("fsdp2", 2, {"fused": True}),
    ("fsdp2-one-row", 4, {}),
    ("fsdp2-offload", 2, {}),
    ("hsdp", 4, {}),
    ("fsdp2-tp", 4, {}),
    ("replicated", 2, {}),
    ("fsdp1", 2, {"sync_every": False}),
    ("fsdp1-original", 4, {}),
    ("fsdp1-hybrid", 4, {}),
]
for wrap, ranks, options in FAULTS:
    case(f"faults-{named(wrap, ranks, options)}", faults, ranks, wrap=wrap, **options)


def bad_loss(rank: int, *, wrap: str) -> Result:
    """One micro-batch's loss of the last rank is NaN before it is scaled; then an overflow, and a good update."""
    training = Training(wrap, rank, SETTINGS)
    training.backward()
    clip_and_step(training.scaler, training.optimizer, 1.0)
    updates = []
    for kind in ("bad loss", "overflow", "good"):
        before, hit = training.own_bits(), rank == dist.get_world_size() - 1 and kind != "good"
        training.backward((math.nan if hit else 1.0, 1.0))
        if hit and kind == "bad loss":
            training.scaler.report_bad_loss(BadLoss("advantages", "advantages is not finite"))
        update = clip_and_step(training.scaler, training.optimizer, 1.0)
        changed = training.own_bits() != before
        updates.append([update.skipped, update.loss_not_finite, changed, training.scaler.get_scale()])
        updates[-1].append(training.scaler.bad_loss.rank if training.scaler.bad_loss else None)
    return {"updates": updates, "state": training.scaler.state_dict()}


for wrap in ("fsdp2-layers", "fsdp1-original"):
    case(f"bad-loss-{wrap}", bad_loss, 2, wrap=wrap)


def torch_s_sequence(rank: int, *, fused: bool, unscale: bool) -> Result:
    """scale, unscale_, step, update with an infinity on the last rank."""
    training = Training("fsdp2", rank, SETTINGS, fused=fused)
    weights = [training.bits()]
    for bad in (True, False):
        inject(training, "gradient", 0, math.inf if bad and rank == dist.get_world_size() - 1 else None)
        if not bad:
            training.backward()
        if unscale:
            training.scaler.unscale_(training.optimizer)
        training.scaler.step(training.optimizer)
        training.scaler.update()
        weights.append(training.bits())
    return {"weights": weights, "state": training.scaler.state_dict()}


for fused in (False, True):
    for unscale in (False, True):
        case(f"torch-{fused=}-{unscale=}", torch_s_sequence, 2, fused=fused, unscale=unscale)


def two_groups(rank: int) -> Result:
    """Ranks 0 and 1 train one model, 2 and 3 another; the first pair's gradients are bad."""
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    training = Training("replicated", rank, SETTINGS, group=pair)
    training.backward((math.nan,) if rank == 0 else (1.0,))
    skipped = clip_and_step(training.scaler, training.optimizer, 1.0).skipped
    training.backward((1.0,))
    exact = norm(training.whole("grad")) / training.scaler.get_scale()
    return {
        "skipped": skipped,
        "norm": clip_and_step(training.scaler, training.optimizer, 1.0).grad_norm,
        "exact": exact,
    }


case("two-groups", two_groups, 4)


def partial_sum(rank: int) -> Result:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = init_device_mesh("cpu", (2,))
    weight = torch.nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()]))
    weight.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    training = Training("replicated", rank, SETTINGS)
    try:
        clip_and_step(training.scaler, torch.optim.AdamW([weight]), 1.0)
    except Fp16PatchError as error:
        return {"code": error.code}
    return {"code": None}


case("partial", partial_sum, 2)


UPDATES = 1000
STORM = LossScaling(init_scale=2.0**12, growth_interval=4, min_scale=2.0**-4)


def storm(rank: int) -> Result:
    """A thousand updates, one in ten of them with a fault, and thirty in a row; real overflows come by themselves."""
    training = Training("fsdp2", rank, STORM)
    chance = random.Random(0)  # the same on all ranks
    updates = []
    for number in range(UPDATES):
        bad, where = chance.randrange(dist.get_world_size()), chance.choice(("loss", "gradient"))
        value, index = chance.choice(VALUES), chance.randrange(2)  # micro-batch, or weight and bias of the first layer
        faulty = chance.random() < 0.1 or 500 <= number < 530
        if faulty:
            inject(training, where, index, value if rank == bad else None)
        else:
            training.backward()
        overflow = training.any_rank_holds_what_is_not_finite()
        scale = training.scaler.get_scale()
        update = clip_and_step(training.scaler, training.optimizer, 1.0)
        updates.append([faulty, overflow, update.skipped, scale, training.finite()])
    return {"updates": updates, "counts": training.scaler.state_dict()["counts"], "weights": training.bits()}


case("storm", storm, 2)


if __name__ == "__main__":
    run_all(CASES, Path(sys.argv[1]), sys.argv[2:])
