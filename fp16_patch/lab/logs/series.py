# SPDX-License-Identifier: Apache-2.0
"""Build one series per metric from what a run logged, which may be missing, short or truncated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    "rollout_non_finite_tokens": ("rollout/non_finite_tokens",),
    "rollout_non_finite_answers": ("rollout/non_finite_answers",),
    "rollout_non_finite_logits": ("rollout/non_finite_logits",),
    "rollout_masked_answers": ("rollout/masked_answers",),
    "rollout_changed_sampling": ("rollout/changed_sampling",),
    "trainer_non_finite_tokens": ("trainer/non_finite_tokens",),
    "mismatch_non_finite_tokens": (f"{METRIC_PREFIX}non_finite_tokens",),
    "loss_not_finite": ("actor/loss_not_finite",),
    "losses_not_finite_total": ("actor/losses_not_finite_total/max",),
    "critic_loss_not_finite": ("critic/loss_not_finite",),
    "critic_losses_not_finite_total": ("critic/losses_not_finite_total/max",),
}
"""Series name -> logged keys. Where verl and OpenRLHF differ, verl's comes first.

The second key of a mismatch metric is verl's own, for runs without our metrics.
"""

COUNTS = ("samples", "response_tokens")
"""Counts per step. OpenRLHF logs the mean response and the number of samples, verl all tokens and both means."""
_COUNTED = (
    "rollout/num_samples",
    "rollout/response_length_mean",
    "response_length/mean",
    "prompt_length/mean",
    "perf/total_num_tokens",
)

_EVALUATION = re.compile(r"val-core/.+/mean@\d+|eval_.+_pass1")
"""Keys of evaluation scores: verl's mean over the rollouts of each problem, and OpenRLHF's."""

Points = tuple[list[int], list[float]]


@dataclass(frozen=True)
class NonFiniteSteps:
    """The steps at which a metric was logged as NaN or infinite, ascending. ``logged`` counts all its steps."""

    steps: list[int]
    logged: int

    def __str__(self) -> str:
        return f"not finite in {len(self.steps)} of {self.logged} steps"


@dataclass(frozen=True)
class Series:
    """The series of one run.

    ``steps`` are the logged training steps, ascending. Each list in ``values`` has the same length, with None where a
    metric is missing or not finite. ``non_finite`` says which of the two, for each series and each evaluation score
    that has a step which is not finite. ``evaluation`` maps each score's logged key to its steps and finite values.
    """

    steps: list[int]
    values: dict[str, list[float | None]]
    unreadable_lines: int
    non_finite: dict[str, NonFiniteSteps]
    evaluation: dict[str, Points]

    def is_logged(self, name: str) -> bool:
        """Return whether a step logged a value of this series, finite or not."""
        return name in self.non_finite or bool(self.known(name))

    def non_finite_steps(self, name: str) -> list[int]:
        """Return the steps at which this series was logged as NaN or infinite."""
        return self.non_finite[name].steps if name in self.non_finite else []

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
        rows = read_json_lines(metrics)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)  # else it is a folder, or there is no permission
        rows = StepMetrics(unreadable=0 if missing else 1)
    return build_series(rows)


def detect_framework(rows: StepMetrics) -> str:
    """Return the framework whose key of the training reward was logged."""
    verl_key, _ = METRIC_KEYS["reward"]
    return "verl" if any(verl_key in data for data in rows.by_step.values()) else "openrlhf"


def build_series(rows: StepMetrics) -> Series:
    """Build the series of a run from either framework's keys."""
    found = sorted(rows.by_step.items())
    # Rows without a training reward are validation only.
    training = {step: data for step, data in found if has_metric(data, "reward")}
    values = {name: [metric_value(data, name) for data in training.values()] for name in METRIC_KEYS}
    counts = [_counts(data) for data in training.values()]
    non_finite = {name: _non_finite(training, METRIC_KEYS[name], values[name]) for name in METRIC_KEYS}
    for i, name in enumerate(COUNTS):
        values[name] = [count[i] for count in counts]
        non_finite[name] = _non_finite(training, _COUNTED, values[name])
    evaluation: dict[str, Points] = {}
    for key in dict.fromkeys(key for _, data in found for key in filter(_EVALUATION.fullmatch, data)):
        rows_with_score = {step: data for step, data in found if key in data}
        scores = [finite_number(data[key]) for data in rows_with_score.values()]
        pairs = [(step, score) for step, score in zip(rows_with_score, scores, strict=True) if score is not None]
        evaluation[key] = ([step for step, _ in pairs], [score for _, score in pairs])
        non_finite[key] = _non_finite(rows_with_score, [key], scores)
    return Series(
        steps=list(training),
        values=values,
        unreadable_lines=rows.unreadable,
        non_finite={name: steps for name, steps in non_finite.items() if steps.steps},
        evaluation=evaluation,
    )


def _non_finite(
    rows: Mapping[int, Mapping[str, Any]], keys: Sequence[str], values: Sequence[float | None]
) -> NonFiniteSteps:
    """Return the steps without a value that logged NaN or infinity under one of ``keys``."""
    bad = [
        step
        for (step, data), value in zip(rows.items(), values, strict=True)
        if value is None and any(key in data and finite_number(data[key]) is None for key in keys)
    ]
    return NonFiniteSteps(bad, logged=len(bad) + sum(value is not None for value in values))


def _counts(data: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the samples and response tokens of a step, None if unknown."""
    samples = finite_number(data.get("rollout/num_samples"))
    mean = finite_number(data.get("rollout/response_length_mean"))
    if samples is None and (mean := finite_number(data.get("response_length/mean"))) is not None:
        tokens, prompt = finite_number(data.get("perf/total_num_tokens")), finite_number(data.get("prompt_length/mean"))
        if tokens is not None and prompt is not None and mean + prompt > 0:
            samples = round(tokens / (mean + prompt))
    return samples, None if samples is None or mean is None else samples * mean


def has_metric(data: Mapping[str, Any], name: str) -> bool:
    """Return whether one of :data:`METRIC_KEYS` is in a step's metrics, finite or not."""
    return any(key in data for key in METRIC_KEYS[name])


def metric_value(data: Mapping[str, Any], name: str) -> float | None:
    """Return the value of one of :data:`METRIC_KEYS` in a step's metrics, None if it is missing or not finite."""
    return next((finite_number(data[key]) for key in METRIC_KEYS[name] if key in data), None)


def finite_number(value: object) -> float | None:
    """Return a finite float, or None. verl's logger writes NaN and infinity as null."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
