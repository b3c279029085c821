# SPDX-License-Identifier: Apache-2.0
"""Numbers and names of a diagnosis in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow
from fp16_patch.loss_scaling.gradient_statistics import FP16_MAX

NAMED = 3
"""Parameters listed by name; the others are counted."""


def called(module: str) -> str:
    return module or "the model itself"


def shares_of(shares: Mapping[str, float]) -> str:
    some = [f"{name} ({percent(share)})" for name, share in list(shares.items())[:NAMED]]
    more = len(shares) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def power(scale: float) -> str:
    """All digits: rounded ones are no power of two."""
    return str(int(scale)) if scale >= 1 else repr(scale)


def scale_history(history: Sequence[tuple[int, float]]) -> str:
    entries = [f"{power(scale)} after {updates}" if updates else power(scale) for updates, scale in history]
    if len(entries) > 8:
        entries = [*entries[:3], f"({len(entries) - 7} more)", *entries[-4:]]
    return " -> ".join(entries)


def room(rows: Iterable[ModuleRow], kind: str) -> str:
    """``"largest finite gradient 812 in model.norm, 6.3 bits below 65504"``; empty where FP16 computed nothing."""
    peaks = [(getattr(row, f"{kind}_peak"), row.module) for row in rows if row.dtype == "float16"]
    peak, module = max(((peak, module) for peak, module in peaks if peak), default=(None, ""))
    if peak is None:
        return ""
    return f"largest finite {kind} {peak:.4g} in {called(module)}, {math.log2(FP16_MAX / peak):.1f} bits below 65504"


def peak(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
