# SPDX-License-Identifier: Apache-2.0
"""Record dtypes of passing tensors on the object that handles them, an engine or a vLLM worker."""

from __future__ import annotations

from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.report.dtypes import format_dtypes


class _ObservedDtypes(dict[str, str]):
    """Row of the precision report -> dtypes."""


def record_dtype(holder: Any, row: str, *dtypes: Any) -> None:
    """Set a row of the precision report to these dtypes; the last ones recorded count."""
    attached(holder, _ObservedDtypes)[row] = format_dtypes(dtypes)


def recorded_dtypes(holder: Any) -> dict[str, str]:
    """Return the rows recorded on ``holder``: row of the precision report -> dtypes."""
    return dict(attached(holder, _ObservedDtypes))
