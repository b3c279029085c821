# SPDX-License-Identifier: Apache-2.0
"""Write the settings of Megatron's OptimizerConfig that concern FP16."""

from __future__ import annotations

from typing import Any

from fp16_patch.loss_scaling import LossScaling

SETTINGS = {
    "initial_loss_scale": "init_scale",
    "min_loss_scale": "min_scale",
    "loss_scale_window": "growth_interval",
    "hysteresis": "hysteresis",
}
"""Megatron's names -> ours."""


def optimizer_config(settings: LossScaling) -> dict[str, Any]:
    """Return the fields that agree with ``settings``, so that Megatron prints and saves true values.

    They cannot express ``growth_factor``, ``backoff_factor``, ``max_scale`` and the limits of skipped updates; the
    scaler that :func:`~fp16_patch.engines.megatron.scaler.install_loss_scaler` installs uses them all.
    """
    dynamic = {"loss_scale": None}  # a number would be a fixed scale
    return dynamic | {theirs: getattr(settings, ours) for theirs, ours in SETTINGS.items()}
