# SPDX-License-Identifier: Apache-2.0
"""Per-step series out of an arm's ``metrics.jsonl``, which may be missing, short, or cut off in the middle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEYS = {
    "reward": ("critic/score/mean", "rollout/reward_mean"),
    "prob_diff_mean": ("mismatch/prob_diff_mean",),
    "k3_kl": ("mismatch/k3_kl",),
    "pi_minus_mu_max": ("mismatch/pi_minus_mu_max",),
    "pi_minus_mu_min": ("mismatch/pi_minus_mu_min",),
    "loss_scale": ("actor/loss_scale",),
    "update_skipped": ("actor/update_skipped",),
    "updates_skipped_total": ("actor/updates_skipped_total/max",),
    "grad_norm": ("actor/grad_norm", "actor_grad_norm"),
    "seconds": ("timing_s/step", "timing/step_total"),
}
"""Our name of each series, and the key of verl or OpenRLHF, where they differ in this order.

A step without any, or with a value that is not finite, holds None.
"""


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
    """Read a file of lines ``{"step": 1, "data": {...}}``, as verl's ``file`` logger writes.

    A step logged twice keeps the later values.
    """
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
    steps = sorted(step for step, data in rows.items() if any(key in data for key in KEYS["reward"]))
    values = {name: [value_of(rows[step], name) for step in steps] for name in KEYS}
    return Series(steps, values, unreadable)


def value_of(data: Mapping[str, Any], name: str) -> float | None:
    """The value of one of our series in a step's metrics."""
    return next((number(data[key]) for key in KEYS[name] if key in data), None)


def number(value: object) -> float | None:
    """A finite float or None; verl's logger writes NaN and infinity as null."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
