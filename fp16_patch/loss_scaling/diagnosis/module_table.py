# SPDX-License-Identifier: Apache-2.0
"""The modules of a trace as a table for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fp16_patch import text_table
from fp16_patch.loss_scaling.diagnosis.format import format_peak, module_label, percent
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow

SHOWN, SHOWN_BEFORE = 20, 6
"""Modules in the table, and how many of them come before the first one that overflowed."""


def module_table(
    rows: Sequence[ModuleRow],
    begins: int | None,
    direction: str,
    marked: Collection[str],
    total: int,
    *,
    gradients: bool = True,
) -> str:
    """Return the modules around the first one that overflowed, or those with the largest peaks.

    Args:
        rows: The modules in the order in which they ran.
        begins: The place of the first one that overflowed in ``rows``, or None.
        direction: ``"forward"`` or ``"backward"``, for the title.
        marked: Names of the modules with an arrow.
        total: Modules of the trace, those that did not run in this direction included.
        gradients: Whether the table has columns for gradients.
    """
    title = "modules, largest peaks first" if begins is None else f"modules in {direction} order"
    if begins is None:
        shown = sorted(rows, key=lambda row: -max(row.gradient_peak or 0, row.activation_peak or 0))
    else:
        shown = list(rows[max(begins - SHOWN_BEFORE, 0) :])
    columns = ("activation", "gradient") if gradients else ("activation",)
    header = [title, "class", "dtype", *(text for kind in columns for text in (f"{kind} peak", "inf/NaN")), ""]
    cells = [
        [
            module_label(row.module),
            row.class_name,
            row.dtype,
            *(text for kind in columns for text in _peak_and_share(row, kind)),
            "<- first" if row.module in marked else "",
        ]
        for row in shown[:SHOWN]
    ]
    left_out = total - len(cells)
    return text_table.plain(header, cells) + (f"\n({left_out} more modules in the JSON file)" if left_out else "")


def _peak_and_share(row: ModuleRow, kind: str) -> tuple[str, str]:
    return format_peak(getattr(row, f"{kind}_peak")), percent(getattr(row, f"{kind}_nonfinite") or None)
