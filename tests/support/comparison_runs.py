# SPDX-License-Identifier: Apache-2.0
"""Arms of a run as verl and the launcher leave them, with few steps and round numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fp16_patch.lab.arms.settings import FORMAT


def write_arm(folder: Path, precision: str, size: float, steps: int = 8, **changed: list[float | None]) -> None:
    """Write one arm. ``changed`` replaces single metrics (``__`` for ``/``)."""
    folder.mkdir()
    fp16 = precision == "fp16"
    metrics: dict[str, list[Any]] = {
        "critic__score__mean": [0.1 * step for step in range(steps)],
        "mismatch__prob_diff_mean": [size] * steps,
        "mismatch__k3_kl": [size * size] * steps,
        "mismatch__pi_minus_mu_max": [5 * size] * steps,
        "mismatch__pi_minus_mu_min": [-4 * size] * steps,
        "actor__grad_norm": [1.0] * steps,
        "timing_s__step": [2.0] * steps,
    }
    if fp16:
        metrics |= {"actor__loss_scale": [65536.0] * steps, "actor__update_skipped": [1.0] + [0.0] * (steps - 1)}
        metrics["actor__updates_skipped_total/max"] = [1.0] * steps
    metrics |= changed
    lines = [json.dumps({"step": 0, "data": {"val-core/acc": 0.5}})]
    for i in range(steps):
        data = {name.replace("__", "/"): values[i] for name, values in metrics.items()}
        lines.append(json.dumps({"step": i + 1, "data": data}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    roles = {"actor": {"master_weights": "float32", "compute": "float16" if fp16 else "bfloat16"}}
    ledger = [{"name": "a", "outcome": "applied"}, {"name": "b", "outcome": "applied"}]
    report = {
        "precision": precision,
        "flag": {"train_dtype": precision},
        "roles": roles,
        "processes": [{"process": "trainer rank 0", "ledger": ledger}],
        "versions": {"verl": "0.9.1"},
    }
    (folder / "precision_report.json").write_text(json.dumps(report))
    result = {
        "status": "completed",
        "error": None,
        "seconds": 60.0,
        "command": "python -m verl",
        "versions": {"python": "3"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    settings = {"format": FORMAT, "folder": str(folder), "overrides": {}, "environment": {}}
    (folder / "settings.json").write_text(json.dumps(settings))
