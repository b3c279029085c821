# SPDX-License-Identifier: Apache-2.0
"""A diagnosis as a report: JSON, and text for a terminal."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fp16_patch.loss_scaling.diagnosis.cause import in_order
from fp16_patch.loss_scaling.diagnosis.format import called, peak, percent, power, room, scale_history, shares_of
from fp16_patch.loss_scaling.diagnosis.observations import Diagnosis

FORMAT = "fp16_patch.overflow_report/1"
SHOWN, SHOWN_BEFORE = 20, 6
"""Modules in the text report, and how many of them come before the first one that overflowed."""


def as_document(seen: Diagnosis) -> dict[str, Any]:
    """JSON-able, without inf or NaN."""
    found = seen.finding
    return {
        "format": FORMAT,
        "reason": seen.reason,
        **asdict(found),
        "loss_scale": seen.loss_scale,
        "settings": dict(seen.settings),
        "counts": dict(seen.counts),
        "history": [list(entry) for entry in seen.history],
        "losses": asdict(seen.losses),
        "parameters": dict(seen.parameters),
        "weights": dict(seen.weights),
        "modules": [asdict(row) for row in seen.rows],
        "torch": seen.torch_version,
    }


def render(seen: Diagnosis) -> str:
    """For a terminal."""
    title = f"fp16_patch overflow report: {seen.reason}"
    counts = ", ".join(f"{count} {name}" for name, count in seen.counts.items())
    lines = [
        title,
        "-" * len(title),
        f"found: {seen.cause}",
        f"traced at loss scale {power(seen.loss_scale)}; {counts}; torch {seen.torch_version}",
        f"scale: {scale_history(seen.history)}",
        *([f"gradients with inf or NaN: {shares_of(seen.parameters)}"] if seen.parameters else []),
        "",
        *_table(seen),
        "",
        *(f"headroom: {line}" for kind in ("gradient", "activation") if (line := room(seen.rows, kind))),
        "what to try:",
        *(f"  {number}. {line}" for number, line in enumerate(seen.advice, 1)),
    ]
    return "\n".join(line.rstrip() for line in lines)


def save(diagnosis: Diagnosis, folder: str | Path, stem: str = "overflow_report") -> Path:
    """Write ``<stem>.json`` and ``<stem>.txt`` into ``folder``; return the text's path. Nobody reads half a file."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    document = json.dumps(as_document(diagnosis), indent=2, allow_nan=False)
    for ending, text in (("json", document), ("txt", render(diagnosis))):
        partial = target / f".{stem}.{ending}.{os.getpid()}"
        partial.write_text(text + "\n")
        os.replace(partial, target / f"{stem}.{ending}")
    return target / f"{stem}.txt"


def _table(seen: Diagnosis) -> list[str]:
    order, overflow = (
        ("forward_order", "forward_overflow") if seen.case == "forward" else ("backward_order", "first_overflow")
    )
    rows = in_order(seen.rows, order)
    begins = next((at for at, row in enumerate(rows) if getattr(row, overflow) is not None), None)
    if begins is None:
        rows = sorted(seen.rows, key=lambda row: -max(row.gradient_peak or 0, row.activation_peak or 0))[:SHOWN]
        title = "modules, largest peaks first"
    else:
        rows = rows[max(begins - SHOWN_BEFORE, 0) :][:SHOWN]
        title = f"modules in {order.removesuffix('_order')} order"
    table = [[title, "class", "dtype", "activation peak", "inf/NaN", "gradient peak", "inf/NaN", ""]]
    for row in rows:
        table.append(
            [
                called(row.module),
                row.class_name,
                row.dtype,
                peak(row.activation_peak),
                percent(row.activation_nonfinite or None),
                peak(row.gradient_peak),
                percent(row.gradient_nonfinite or None),
                "<- first" if row.module in seen.suspects else "",
            ]
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    left_out = len(seen.rows) - len(rows)
    return [*lines, f"({left_out} more modules in the JSON file)"] if left_out else lines
