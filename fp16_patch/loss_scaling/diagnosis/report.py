# SPDX-License-Identifier: Apache-2.0
"""A diagnosis as a report: JSON, and text for a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fp16_patch.files import write_atomically
from fp16_patch.loss_scaling.diagnosis.advice import Diagnosis
from fp16_patch.loss_scaling.diagnosis.cause import in_order
from fp16_patch.loss_scaling.diagnosis.format import exact_scale, format_shares, headroom_line, scale_history
from fp16_patch.loss_scaling.diagnosis.module_table import module_table

FORMAT = "fp16_patch.overflow_report/1"


def as_document(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the report as JSON types, without inf or NaN."""
    seen = diagnosis.observations
    return {
        "format": FORMAT,
        "reason": seen.reason,
        "case": diagnosis.cause.case,
        "cause": diagnosis.summary,
        "suspects": diagnosis.cause.culprits,
        "advice": diagnosis.advice,
        "loss_scale": seen.loss_scale,
        "settings": dict(seen.settings),
        "counts": dict(seen.counts),
        "history": [list(entry) for entry in seen.history],
        "losses": asdict(seen.losses),
        "loss_not_finite": None if seen.bad_loss is None else asdict(seen.bad_loss),
        "parameters": dict(seen.parameters),
        "weights": dict(seen.weights),
        "modules": [asdict(row) for row in seen.rows],
        "torch": seen.torch_version,
    }


def render(diagnosis: Diagnosis) -> str:
    """Return the report as text for a terminal."""
    seen = diagnosis.observations
    title = f"fp16_patch overflow report: {seen.reason}"
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in seen.counts.items())
    lines = [
        title,
        "-" * len(title),
        f"found: {diagnosis.summary}",
        f"traced at loss scale {exact_scale(seen.loss_scale)}; {counts}; torch {seen.torch_version}",
        f"scale: {scale_history(seen.history)}",
        *([f"gradients with inf or NaN: {format_shares(seen.parameters)}"] if seen.parameters else []),
        "",
        _table(diagnosis),
        "",
        *(f"headroom: {line}" for kind in ("gradient", "activation") if (line := headroom_line(seen.rows, kind))),
        "what to try:",
        *(f"  {number}. {line}" for number, line in enumerate(diagnosis.advice, 1)),
    ]
    return "\n".join(lines)


def save(diagnosis: Diagnosis, folder: str | Path, stem: str = "overflow_report") -> Path:
    """Write ``<stem>.json`` and ``<stem>.txt`` into ``folder``, each atomically; return the text's path."""
    document = json.dumps(as_document(diagnosis), indent=2, allow_nan=False)
    write_atomically(Path(folder, f"{stem}.json"), f"{document}\n")
    return write_atomically(Path(folder, f"{stem}.txt"), f"{render(diagnosis)}\n")


def _table(diagnosis: Diagnosis) -> str:
    seen, cause = diagnosis.observations, diagnosis.cause
    order, overflow = (
        ("forward_order", "forward_overflow") if cause.case == "forward" else ("backward_order", "first_overflow")
    )
    rows = in_order(seen.rows, order)
    begins = next((at for at, row in enumerate(rows) if getattr(row, overflow) is not None), None)
    shown = seen.rows if begins is None else rows
    return module_table(shown, begins, order.removesuffix("_order"), cause.culprits, len(seen.rows))
