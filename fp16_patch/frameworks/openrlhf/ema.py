# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF's moving average of the weights, kept in FP32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from fp16_patch.frameworks.openrlhf.engines import engine_of

_AVERAGES = "_fp16_patch_averages"  # on the averaged model: one FP32 tensor for each trainable parameter


def average_in_fp32(original: Callable[..., Any]) -> Callable[..., Any]:
    """Average the weights in FP32, once for each update that was made; the model gets the average rounded.

    In FP16 ``beta * average`` is off by up to 5e-4 of a weight at every step, more than most updates move it. ZeRO-3
    keeps parts of a parameter on every rank, alike for both models, and the average is taken part by part; upstream
    gathers them and drops what it has written.
    """

    @functools.wraps(original)
    def moving_average(
        self: Any, model: Any, model_ema: Any, beta: float = 0.992, device: str = "cpu", **kwargs: Any
    ) -> Any:
        import torch

        from fp16_patch.engines.deepspeed.step import last_update, scaler_of

        engine = engine_of(model)
        if scaler_of(engine) is None:
            return original(self, model, model_ema, beta, device, **kwargs)
        update = last_update(engine)
        if update is None or update.skipped:  # it only accumulated, or changed nothing
            return None
        pairs = list(_parts(model, model_ema))
        if not hasattr(model_ema, _AVERAGES):
            setattr(model_ema, _AVERAGES, [average.detach().float().clone() for _, average in pairs])
        with torch.no_grad():
            for (weight, rounded), average in zip(pairs, getattr(model_ema, _AVERAGES), strict=True):
                average.lerp_(weight.to(average.device, torch.float32), 1 - beta)
                rounded.copy_(average)
        return None

    return moving_average


def _parts(model: Any, model_ema: Any) -> Iterator[tuple[Any, Any]]:
    """Yield this rank's part of each trainable parameter, and of its average."""
    for weight, average in zip(model.parameters(), model_ema.parameters(), strict=True):
        if weight.requires_grad:
            yield (getattr(weight, "ds_tensor", weight).data, getattr(average, "ds_tensor", average).data)
