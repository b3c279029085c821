# SPDX-License-Identifier: Apache-2.0
"""Steps that are made and skipped, on every layout; bounds."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from core_building import Training
from core_registry import LAYOUTS, case, in_layout
from engine_ranks import Result

from fp16_patch.engines.megatron.optimizer_choice import in_use
from fp16_patch.engines.megatron.step import take_step
from fp16_patch.engines.megatron.sub_optimizers import list_sub_optimizers
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.loss_check import BadLoss
from fp16_patch.loss_scaling.update import describe


def skip_then_step(rank: int, **options: Any) -> Result:
    """A good update, one that cannot be made because of the last rank, a good one."""
    training = Training(LossScaling(init_scale=2.0**10, growth_interval=2), **options)
    updates = []
    for spoilt in (False, True, False, False, False):
        training.backward()
        if spoilt and rank == dist.get_world_size() - 1:
            training.spoil(experts=bool(training.config.num_moe_experts))
        before = training.digest()
        update = take_step(training.optimizer)
        updates.append(
            {
                "moved": training.digest() != before,
                "update": {name: value for name, value in vars(update).items() if name != "statistics"},
                "metrics": describe(update, training.scaler.counts),
                "scales": [float(part.get_loss_scale()) for part in list_sub_optimizers(training.optimizer)],
                "trackers": [part.grad_scaler._growth_tracker for part in list_sub_optimizers(training.optimizer)],
            }
        )
    return {"updates": updates, "optimizer": in_use(training.optimizer)}


for layout in LAYOUTS:
    in_layout("skip", skip_then_step, layout)


def bad_loss(rank: int, **options: Any) -> Result:
    """An update whose loss is NaN on the last rank before it is scaled, then an overflow, then a good update."""
    training = Training(LossScaling(init_scale=2.0**10), **options)
    last = rank == dist.get_world_size() - 1
    updates = []
    for kind in ("bad loss", "overflow", "good"):
        before = training.digest()
        training.backward(factor=float("nan") if last and kind != "good" else 1.0)
        if last and kind == "bad loss":
            training.scaler.report_bad_loss(BadLoss("advantages", "advantages is not finite"))
        update = take_step(training.optimizer)
        changed = training.digest() != before
        updates.append([update.skipped, update.loss_not_finite, changed, training.scaler.get_scale()])
    return {"updates": updates, "counts": vars(training.scaler.counts)}


for layout in ("dp2", "pp2", "ep2"):
    in_layout("bad-loss", bad_loss, layout)


def bounds(rank: int, *, settings: LossScaling | None, **options: Any) -> Result:
    """Where the scale goes in six good updates, and in six bad ones after them."""
    training = Training(settings, lr=0.0, **options)
    step = training.optimizer.step if settings is None else lambda: take_step(training.optimizer)
    scales = []
    for good in [True] * 6 + [False] * 6:
        training.backward()
        if not good:
            training.spoil(experts=False)
        step()
        scales.append(float(training.optimizer.get_loss_scale()))
    return {"scales": scales}


BOUNDED = LossScaling(init_scale=2.0**8, growth_interval=1, growth_factor=4.0, max_scale=2.0**11, min_scale=2.0**6)
case("bounds", bounds, settings=BOUNDED)
case(
    "stock-bounds",
    bounds,
    settings=None,
    optimizer={"initial_loss_scale": 2.0**8, "loss_scale_window": 1, "min_loss_scale": 2.0**6, "hysteresis": 1},
)


def norms(rank: int, **options: Any) -> Result:
    """The norm that is reported where Megatron clips and where it does not, chained and not."""
    found = {}
    for clip in (0.0, 1e-3):
        training = Training(LossScaling(init_scale=2.0**10), lr=0.0, clip=clip)
        (alone,) = list_sub_optimizers(training.optimizer)
        for name, optimizer in (("chained", training.optimizer), ("alone", alone)):
            optimizer._fp16_patch_loss_scaler = training.scaler
            training.backward()
            found[f"{name}-{clip:g}"] = take_step(optimizer).grad_norm
        training.close()
    return found


case("norms", norms)


def statistics(rank: int, **options: Any) -> Result:
    """Headroom and underflow share of the first update, and the gradients they are of, in one piece."""
    training = Training(LossScaling(init_scale=2.0**10), lr=0.0)
    training.backward()
    gradients = training.gradients()
    update = take_step(training.optimizer)
    looked_up = "module.module.embedding.word_embeddings.weight"
    counted = [gradient for name, gradient in gradients.items() if name != looked_up]
    return {
        "headroom": update.headroom_bits,
        "share": update.underflow_share,
        "peak": max(float(gradient.abs().max()) for gradient in gradients.values()),
        "zeros": sum(int((gradient == 0).sum()) for gradient in counted),
        "elements": sum(gradient.numel() for gradient in counted),
        "zeros_with_lookups": sum(int((gradient == 0).sum()) for gradient in gradients.values()),
    }


case("statistics", statistics)


def loop_of_its_own(rank: int, **options: Any) -> Result:
    """Stock ``optimizer.step()`` on an optimizer with our scaler; and one part stepped alone."""
    training = Training(LossScaling(init_scale=2.0**10, growth_interval=1), **options)
    training.backward()
    made = training.optimizer.step()[0]
    after = training.scaler.get_scale()
    training.backward()
    first = list_sub_optimizers(training.optimizer)[0]
    first.prepare_grads()
    try:
        first.prepare_grads()
        code = None
    except Fp16PatchError as raised:
        code = raised.code
    training.backward()
    return {"made": made, "scale": after, "code": code, "then": take_step(training.optimizer).skipped}


in_layout("loop", loop_of_its_own, "ep2")
