# SPDX-License-Identifier: Apache-2.0
"""Per-step series out of verl's ``metrics.jsonl``, which may be missing, short, or cut off in the middle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEYS = {
    "reward": "critic/score/mean",
    "prob_diff_mean": "mismatch/prob_diff_mean",
    "k3_kl": "mismatch/k3_kl",
    "pi_minus_mu_max": "mismatch/pi_minus_mu_max",
    "pi_minus_mu_min": "mismatch/pi_minus_mu_min",
    "loss_scale": "actor/loss_scale",
    "update_skipped": "actor/update_skipped",
    "grad_norm": "actor/grad_norm",
    "seconds": "timing_s/step",
}
"""Our name of each series and verl's key. A step without the key, or with a value that is not finite, holds None."""


@dataclass(frozen=True)
class Series:
    """``steps`` are the training steps logged, ascending; each list in ``values`` is as long."""

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=lambda: {name: [] for name in KEYS})
    unreadable_lines: int = 0

    def known(self, name: str, steps: frozenset[int] | None = None) -> list[float]:
        """The values of one series that are there, on ``steps`` if given, in order."""
        pairs = zip(self.steps, self.values[name], strict=True)
        return [v for step, v in pairs if v is not None and (steps is None or step in steps)]


def read_series(metrics: Path) -> Series:
    """Read the file verl's ``file`` logger writes. A step logged twice keeps the later values."""
    try:
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return Series()
    rows: dict[int, dict[str, Any]] = {}
    unreadable = 0
    for line in lines:
        try:
            row = json.loads(line)
            rows.setdefault(int(row["step"]), {}).update(row["data"])
        except (ValueError, KeyError, TypeError):
            unreadable += 1
    # Rows without a training reward are validation only.
    steps = sorted(step for step, data in rows.items() if KEYS["reward"] in data)
    values = {name: [number(rows[step].get(key)) for step in steps] for name, key in KEYS.items()}
    return Series(steps, values, unreadable)


def number(value: object) -> float | None:
    """A finite float or None; verl's logger writes NaN and infinity as null."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
