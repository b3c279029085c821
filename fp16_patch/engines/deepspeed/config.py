# SPDX-License-Identifier: Apache-2.0
"""Write the parts of a DeepSpeed configuration that concern FP16."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fp16_patch.loss_scaling import LossScaling


def fp16_block(settings: LossScaling) -> dict[str, Any]:
    """Return the ``fp16`` block that agrees with ``settings``, so that DeepSpeed prints and saves true values.

    It cannot express ``growth_factor``, ``backoff_factor``, ``max_scale`` and the limits of skipped updates, and its
    floor is an integer. The scaler that the patches install uses them all.
    """
    return {
        "enabled": True,
        "loss_scale": 0,  # dynamic
        "initial_scale_power": int(math.log2(settings.init_scale)),
        "loss_scale_window": settings.growth_interval,
        "hysteresis": settings.hysteresis,
        "consecutive_hysteresis": False,
        "min_loss_scale": max(int(settings.min_scale), 1),
    }


def with_fp16(config: Mapping[str, Any], settings: LossScaling) -> dict[str, Any]:
    """Return a copy of ``config`` with ``settings``, and gradients accumulated in FP32 unless it names a dtype."""
    types = dict(config.get("data_types") or {})
    if types.get("grad_accum_dtype") is None:
        types["grad_accum_dtype"] = "fp32"  # DeepSpeed's default is the model's, FP16
    return {**config, "fp16": {**(config.get("fp16") or {}), **fp16_block(settings)}, "data_types": types}
