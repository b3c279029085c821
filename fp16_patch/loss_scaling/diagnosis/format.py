# SPDX-License-Identifier: Apache-2.0
"""Format the numbers and names of a diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow
from fp16_patch.loss_scaling.gradient_statistics import headroom_bits

NAMED = 3
"""Parameters listed by name; the others are counted."""


def module_label(module: str) -> str:
    """Return the module's name, and words for the empty name."""
    return module or "the model itself"


def format_shares(shares: Mapping[str, float]) -> str:
    """Return ``"a.weight (3 %), b.weight (100 %) and 4 more"``."""
    some = [f"{name} ({percent(share)})" for name, share in list(shares.items())[:NAMED]]
    more = len(shares) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


def percent(share: float | None) -> str:
    """Return a share from 0 to 1 in percent, ``"-"`` for None."""
    return "-" if share is None else f"{100 * share:.3g} %"


def exact_scale(scale: float) -> str:
    """Return all digits: a rounded scale would not be a power of two."""
    return str(int(scale)) if scale >= 1 else repr(scale)


def scale_history(history: Sequence[tuple[int, float]]) -> str:
    """Return ``"65536 -> 32768 after 1 -> ..."``, at most eight entries."""
    entries = [f"{exact_scale(scale)} after {updates}" if updates else exact_scale(scale) for updates, scale in history]
    if len(entries) > 8:
        entries = [*entries[:3], f"({len(entries) - 7} more)", *entries[-4:]]
    return " -> ".join(entries)


def headroom_line(rows: Iterable[ModuleRow], kind: str) -> str:
    """Return ``"largest finite gradient 812 in model.norm, 6.3 bits below 65504"``; empty without FP16 modules."""
    peaks = [(getattr(row, f"{kind}_peak") or 0.0, row.module) for row in rows if row.dtype == "float16"]
    peak, module = max(peaks, default=(0.0, ""))
    bits = headroom_bits(peak)
    if bits is None:
        return ""
    return f"largest finite {kind} {peak:.4g} in {module_label(module)}, {bits:.1f} bits below 65504"


def format_peak(value: float | None) -> str:
    """Return four digits, ``"-"`` for None."""
    return "-" if value is None else f"{value:.4g}"
