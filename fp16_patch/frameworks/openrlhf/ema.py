# SPDX-License-Identifier: Apache-2.0
"""Keep OpenRLHF's moving average of the weights in FP32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.deepspeed.step import get_loss_scaler, last_update
from fp16_patch.frameworks.openrlhf.releases import TRAINER_RANK
from fp16_patch.frameworks.openrlhf.trainer import engine_of
from fp16_patch.patching import wrap


@dataclass
class _Averages:
    """Hold an averaged model's FP32 averages: a tensor for each trainable parameter; None before the first update."""

    tensors: list[Any] | None = None


@wrap(
    "openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.moving_average",
    name="openrlhf-average-in-fp32",
    reason="an FP16 average of FP16 weights loses most of each update to rounding, and it moves on skipped updates too",
    upstream="OpenRLHF utils/deepspeed/deepspeed.py:503",
    remove_when="OpenRLHF keeps its average in FP32",
    **TRAINER_RANK,
)
def average_in_fp32(
    original: Any, self: Any, model: Any, model_ema: Any, beta: float = 0.992, device: str = "cpu", **kwargs: Any
) -> Any:
    """Average in FP32, once for each update that was not skipped. The model gets the average cast to its dtype.

    In FP16 ``beta * average`` is off by up to 5e-4 of a weight at every step, more than most updates change it.
    ZeRO-3 shards the parameters of both models alike over the ranks, so each rank averages its shard. Upstream gathers
    the shards, and loses what it writes into them.
    """
    import torch

    engine = engine_of(model)
    if get_loss_scaler(engine) is None:
        return original(self, model, model_ema, beta, device, **kwargs)
    update = last_update(engine)
    if update is None or update.skipped:  # the step only accumulated gradients, or was skipped
        return None
    pairs = list(_shards(model, model_ema))
    averages = attached(model_ema, _Averages)
    if averages.tensors is None:
        averages.tensors = [average.detach().float().clone() for _, average in pairs]
    with torch.no_grad():
        for (weight, rounded), average in zip(pairs, averages.tensors, strict=True):
            average.lerp_(weight.to(average.device, torch.float32), 1 - beta)
            rounded.copy_(average)
    return None


def _shards(model: Any, model_ema: Any) -> Iterator[tuple[Any, Any]]:
    """Yield this rank's shard of each trainable parameter, and of its average."""
    for weight, average in zip(model.parameters(), model_ema.parameters(), strict=True):
        if weight.requires_grad:
            yield (getattr(weight, "ds_tensor", weight).data, getattr(average, "ds_tensor", average).data)
