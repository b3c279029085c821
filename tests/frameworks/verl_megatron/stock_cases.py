# SPDX-License-Identifier: Apache-2.0
"""Cases for test_stock_megatron.py: FP16 without the flag."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from engine_ranks import Result
from megatron_building import digest, gradient_buffers, new_engine, optimizers, scales
from megatron_registry import LAYOUTS, at_the_next_step, case, model, train


def spoil(engine: Any, rank: int, *, experts: bool = False) -> None:
    """Put infinities into all gradients of the last rank, or of its experts, right before the next step."""

    def infinite() -> None:
        if rank == torch.distributed.get_world_size() - 1:
            gradient_buffers(engine, experts)[0].fill_(float("inf"))

    at_the_next_step(engine, infinite)


def first_overflow(rank: int, *, layout: str) -> Result:
    engine = new_engine(model(layout), "fp16", **LAYOUTS[layout][1], megatron_optimizer={"hysteresis": 1})
    before = digest(engine)
    spoil(engine, rank)
    error = None
    try:
        train(engine)
    except NotImplementedError as raised:
        error = str(raised)
    changed = digest(engine) != before
    after = train(engine)
    return {
        "error": error,
        "changed": changed,
        "scales": scales(engine),
        "norm after": after.get("metrics", {}).get("grad_norm"),
    }


for layout in ("1", "dp2"):
    case(f"stock-overflow-{layout}", partial(first_overflow, layout=layout), LAYOUTS[layout][0])


def drift(rank: int) -> Result:
    """Make the same update of the same weights, without and after three overflows of the experts only."""
    found: dict[str, Any] = {}
    for overflows in (0, 3):
        engine = new_engine(
            model("moe-ep2"), "fp16", ep=2, optimizer={"clip_grad": 1e9}, megatron_optimizer={"hysteresis": 1}
        )
        for _ in range(overflows):
            spoil(engine, rank, experts=True)
            try:
                train(engine)
            except NotImplementedError:
                continue
        norms: list[float] = []
        at_the_next_step(engine, after=partial(norms_into, norms, engine))
        used = scales(engine)
        train(engine)
        found[str(overflows)] = {"scales": used, "norms": norms}
    return found


def norms_into(norms: list[float], engine: Any) -> None:
    for optimizer in optimizers(engine):
        groups = optimizer.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))


case("stock-drift", drift, 2)
