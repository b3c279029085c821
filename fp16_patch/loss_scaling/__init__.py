# SPDX-License-Identifier: Apache-2.0
"""Dynamic loss scaling: settings now; the scaler's state and diagnosis follow. Knows torch, no framework."""

from fp16_patch.loss_scaling.settings import LossScaling

__all__ = ["LossScaling"]
