# SPDX-License-Identifier: Apache-2.0
"""Build one series per metric from what a run logged, which may be missing, short or truncated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp16_patch.lab.logs.readers import StepMetrics, read_json_lines
from fp16_patch.mismatch import METRIC_PREFIX

METRIC_KEYS = {
    "reward": ("critic/score/mean", "rollout/reward_mean"),
    "prob_diff_mean": (f"{METRIC_PREFIX}prob_diff_mean", "training/rollout_probs_diff_mean"),
    "k3_kl": (f"{METRIC_PREFIX}k3_kl", "rollout_corr/k3_kl"),
    "pi_minus_mu_max": (f"{METRIC_PREFIX}pi_minus_mu_max",),
    "pi_minus_mu_min": (f"{METRIC_PREFIX}pi_minus_mu_min",),
    "loss_scale": ("actor/loss_scale",),
    "update_skipped": ("actor/update_skipped",),
    "updates_skipped_total": ("actor/updates_skipped_total/max",),
    "grad_norm": ("actor/grad_norm", "actor_grad_norm"),
    "seconds": ("timing_s/step", "timing/step_total"),
}
"""Series name -> logged keys. Where verl and OpenRLHF differ, verl's comes first.

The second key of a mismatch metric is verl's own, for runs without our metrics.
"""

COUNTS = ("samples", "response_tokens")
"""Counts per step. OpenRLHF logs the mean response and the number of samples, verl all tokens and both means."""

_EVALUATION = re.compile(r"val-core/.+/mean@\d+|eval_.+_pass1")
"""Keys of evaluation scores: verl's mean over the rollouts of each problem, and OpenRLHF's."""

Points = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Series:
    """The series of one run.

    ``steps`` are the logged training steps, ascending. Each list in ``values`` has the same length, with None where a
    metric is missing or not finite. ``broken_norms`` are the steps whose gradient norm is NaN or infinite.
    ``evaluation`` maps each score's logged key to its steps and values.
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(
        default_factory=lambda: {name: [] for name in (*METRIC_KEYS, *COUNTS)}
    )
    unreadable_lines: int = 0
    broken_norms: frozenset[int] = frozenset()
    evaluation: dict[str, Points] = field(default_factory=dict)

    def known(self, name: str, steps: frozenset[int] | None = None) -> list[float]:
        """Return the values of one series that are not None, on ``steps`` if given, in order."""
        pairs = zip(*self.points(name), strict=True)
        return [v for step, v in pairs if steps is None or step in steps]

    def points(self, name: str) -> Points:
        """Return the steps at which one series has a value, and these values."""
        pairs = [(step, v) for step, v in zip(self.steps, self.values[name], strict=True) if v is not None]
        return [step for step, _ in pairs], [v for _, v in pairs]


def read_series(metrics: Path) -> Series:
    """Read lines of ``{"step": 1, "data": {...}}``, as verl's ``file`` logger writes them. No file, no steps."""
    try:
        return build_series(read_json_lines(metrics))
    except FileNotFoundError:
        return Series()
    except OSError:  # a folder, or no permission
        return Series(unreadable_lines=1)


def detect_framework(rows: StepMetrics) -> str:
    """Return the framework whose key of the training reward was logged."""
    verl_key, _ = METRIC_KEYS["reward"]
    return "verl" if any(verl_key in data for data in rows.by_step.values()) else "openrlhf"


def build_series(rows: StepMetrics) -> Series:
    """Build the series of a run from either framework's keys."""
    found = sorted(rows.by_step.items())
    # Rows without a training reward are validation only.
    training = {step: data for step, data in found if any(key in data for key in METRIC_KEYS["reward"])}
    values = {name: [metric_value(data, name) for data in training.values()] for name in METRIC_KEYS}
    counts = [_counts(data) for data in training.values()]
    broken = {
        step
        for step, data in training.items()
        if any(key in data for key in METRIC_KEYS["grad_norm"]) and metric_value(data, "grad_norm") is None
    }
    evaluation: dict[str, Points] = {}
    for step, data in found:
        for key in filter(_EVALUATION.fullmatch, data):
            if (score := finite_number(data[key])) is not None:
                steps, scores = evaluation.setdefault(key, ([], []))
                steps.append(step)
                scores.append(score)
    return Series(
        steps=list(training),
        values=values | {name: [count[i] for count in counts] for i, name in enumerate(COUNTS)},
        unreadable_lines=rows.unreadable,
        broken_norms=frozenset(broken),
        evaluation=evaluation,
    )


def _counts(data: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the samples and response tokens of a step, None if unknown."""
    samples = finite_number(data.get("rollout/num_samples"))
    mean = finite_number(data.get("rollout/response_length_mean"))
    if samples is None and (mean := finite_number(data.get("response_length/mean"))) is not None:
        tokens, prompt = finite_number(data.get("perf/total_num_tokens")), finite_number(data.get("prompt_length/mean"))
        if tokens is not None and prompt is not None and mean + prompt > 0:
            samples = round(tokens / (mean + prompt))
    return samples, None if samples is None or mean is None else samples * mean


def metric_value(data: Mapping[str, Any], name: str) -> float | None:
    """Return the value of one of :data:`METRIC_KEYS` in a step's metrics."""
    return next((finite_number(data[key]) for key in METRIC_KEYS[name] if key in data), None)


def finite_number(value: object) -> float | None:
    """Return a finite float, or None. verl's logger writes NaN and infinity as null."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
