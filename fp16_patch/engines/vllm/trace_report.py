# SPDX-License-Identifier: Apache-2.0
"""A trace of vLLM's modules as one sentence, as JSON, and as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fp16_patch.engines.vllm.trace import RolloutTrace
from fp16_patch.files import write_atomically
from fp16_patch.loss_scaling.diagnosis.format import format_shares, headroom_line, module_label, percent
from fp16_patch.loss_scaling.diagnosis.module_table import module_table
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow

FORMAT = "fp16_patch.rollout_overflow/1"
_FORWARD = (
    *("module", "class_name", "dtype", "has_parameters", "forward_order"),
    *("activation_peak", "activation_nonfinite", "forward_overflow"),
)


def first_not_finite(rows: Sequence[ModuleRow]) -> ModuleRow | None:
    """Return the first module whose output is not finite while its inputs are; else the first not finite at all."""
    origins = [row for row in rows if row.forward_overflow is not None]
    bad = [row for row in rows if row.activation_nonfinite]
    return min(origins, key=lambda row: row.forward_overflow or 0, default=bad[0] if bad else None)


def summarize(trace: RolloutTrace) -> str:
    """Return one sentence, without a full stop."""
    first = first_not_finite(trace.rows)
    if first is None:
        largest = headroom_line(trace.rows, "activation")
        return "every module is finite in vLLM" + (f"; {largest}" if largest else "")
    finite = [row for row in trace.rows if row.forward_order < first.forward_order and row.activation_peak is not None]
    peak = max(finite, key=lambda row: row.activation_peak or 0, default=None)
    before = f"; peak before it {peak.activation_peak:.2g} in {module_label(peak.module)}" if peak else ""
    weights = f"; weights are inf or NaN: {format_shares(trace.weights)}" if trace.weights else ""
    found = f"{module_label(first.module)} ({first.class_name}, {percent(first.activation_nonfinite)} of its output"
    return f"first module not finite in vLLM: {found}{before}{weights})"


def save(trace: RolloutTrace, facts: Mapping[str, Any], folder: Path, stem: str) -> Path:
    """Write ``<stem>.json`` and ``<stem>.txt`` into ``folder``, each atomically; return the path of the JSON.

    ``facts`` say what was traced; they come first in both.
    """
    first = first_not_finite(trace.rows)
    document = {
        "format": FORMAT,
        **facts,
        "found": summarize(trace),
        "first": first and first.module,
        "weights": trace.weights,
        "modules": [{name: asdict(row)[name] for name in _FORWARD} for row in trace.rows],
    }
    write_atomically(Path(folder, f"{stem}.txt"), f"{render(trace, facts)}\n")
    return write_atomically(Path(folder, f"{stem}.json"), f"{json.dumps(document, indent=2, allow_nan=False)}\n")


def render(trace: RolloutTrace, facts: Mapping[str, Any]) -> str:
    """Return the report as text for a terminal."""
    title = "fp16_patch: one forward pass in vLLM's worker"
    named = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join([title, "-" * len(title), named, f"found: {summarize(trace)}", "", _table(trace.rows)])


def _table(rows: Sequence[ModuleRow]) -> str:
    first = first_not_finite(rows)
    begins = None if first is None else rows.index(first)
    marked = () if first is None else (first.module,)
    return module_table(rows, begins, "forward", marked, len(rows), gradients=False)
