# SPDX-License-Identifier: Apache-2.0
"""Auxiliary losses of experts under a loss scale, and the router's dtype."""

from __future__ import annotations

from typing import Any

import torch
from core_building import Training
from core_registry import case
from engine_ranks import Result

from fp16_patch.loss_scaling import LossScaling

ROUTER = "decoder.layers.0.mlp.router.weight"
AUXILIARY = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 1.0, "moe_z_loss_coeff": 1.0}


def gradient(training: Training) -> torch.Tensor:
    """The router's, true."""
    training.backward()
    found = {name.removeprefix("module.").removeprefix("module."): g for name, g in training.gradients().items()}
    return found[ROUTER] / training.optimizer.get_loss_scale()


def auxiliary(rank: int, *, scaled: bool = True, **options: Any) -> Result:
    """The router's gradient with and without auxiliary losses in FP32 and, at a high scale, in FP16."""
    gradients = {}
    for dtype in ("fp32", "fp16"):
        for name, losses in (("with", AUXILIARY), ("without", {})):
            settings = LossScaling(init_scale=2.0**12) if dtype == "fp16" else None
            training = Training(settings, dtype=dtype, experts=4, micro_batches=2, transformer=losses)
            if not scaled:  # the loss alone, as code does that calls backward itself
                scale = float(training.optimizer.get_loss_scale())
                training.config.grad_scale_func = lambda loss, scale=scale: loss * scale if loss.requires_grad else loss
            gradients[f"{dtype}-{name}"] = gradient(training)
            training.close()
    true = gradients["fp32-with"] - gradients["fp32-without"]
    found = gradients["fp16-with"] - gradients["fp16-without"]
    return {
        "share": float(true.norm() / gradients["fp32-without"].norm()),
        "error": float((found - true).norm() / true.norm()),
        "size": float(found.norm() / true.norm()),
    }


case("auxiliary", auxiliary)
case("auxiliary-unscaled", auxiliary, scaled=False)


def routed(rank: int, *, dtype: str | None, **options: Any) -> Result:
    """What the router makes of the same FP16 input."""
    training = Training(None, experts=4, transformer={"moe_router_dtype": dtype})
    router = training.model[0].module.module.decoder.layers[0].mlp.router
    inputs = torch.randn(8, 1, 32, generator=torch.Generator().manual_seed(0)).half()
    logits = router.gating(inputs)
    exact = inputs.double() @ router.weight.double().t()
    return {"dtype": str(logits.dtype), "error": float((logits.double() - exact).abs().max())}


for chosen in ("fp32", None):
    case(f"router-{chosen}", routed, dtype=chosen)
