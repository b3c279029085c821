# SPDX-License-Identifier: Apache-2.0
"""Dynamic loss scaling: settings, scaler, state, step and overflow diagnosis. Imports torch, no framework."""

from fp16_patch.precision.loss_scaling import LossScaling

__all__ = ["LossScaling"]
