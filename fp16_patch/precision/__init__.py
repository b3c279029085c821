# SPDX-License-Identifier: Apache-2.0
"""What a configuration says: the precision, its settings and their names. Knows no framework and no torch."""

from fp16_patch.precision.loss_scaling import LossScaling
from fp16_patch.precision.precision import (
    KEYS,
    Precision,
    long_name,
    reports_folder,
    short_name,
)

__all__ = [
    "KEYS",
    "LossScaling",
    "Precision",
    "long_name",
    "reports_folder",
    "short_name",
]
