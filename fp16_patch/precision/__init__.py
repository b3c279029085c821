# SPDX-License-Identifier: Apache-2.0
"""What a configuration says: the precision, its settings and their names. Knows no framework and no torch."""

from fp16_patch.precision.loss_scaling import LossScaling
from fp16_patch.precision.precision import (
    ENVIRONMENT_VARIABLE,
    KEYS,
    REPORTS_VARIABLE,
    Precision,
    long_name,
    reports_folder,
    short_name,
)

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "KEYS",
    "LossScaling",
    "Precision",
    "REPORTS_VARIABLE",
    "long_name",
    "reports_folder",
    "short_name",
]
