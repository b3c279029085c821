# SPDX-License-Identifier: Apache-2.0
"""Define what a configuration says: the precision, its settings and their names. Imports no framework and no torch."""

from fp16_patch.precision.loss_scaling import LossScaling
from fp16_patch.precision.precision import (
    OVERWRITE_STEP,
    Precision,
    is_dtype,
    long_name,
    reports_folder,
    short_name,
)

__all__ = [
    "OVERWRITE_STEP",
    "LossScaling",
    "Precision",
    "is_dtype",
    "long_name",
    "reports_folder",
    "short_name",
]
