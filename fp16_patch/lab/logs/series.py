# SPDX-License-Identifier: Apache-2.0
"""Per-step series out of what a run logged, which may be missing, short, or cut off in the middle."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp16_patch.lab.logs.readers import Rows, json_lines

KEYS = {
    "reward": ("critic/score/mean", "rollout/reward_mean"),
    "prob_diff_mean": ("mismatch/prob_diff_mean", "training/rollout_probs_diff_mean"),
    "k3_kl": ("mismatch/k3_kl", "rollout_corr/k3_kl"),
    "pi_minus_mu_max": ("mismatch/pi_minus_mu_max",),
    "pi_minus_mu_min": ("mismatch/pi_minus_mu_min",),
    "loss_scale": ("actor/loss_scale",),
    "update_skipped": ("actor/update_skipped",),
    "updates_skipped_total": ("actor/updates_skipped_total/max",),
    "grad_norm": ("actor/grad_norm", "actor_grad_norm"),
    "seconds": ("timing_s/step", "timing/step_total"),
}
"""Our name of each series, and the key of verl or OpenRLHF, where they differ in this order. The second name of a
mismatch is verl's own, in runs without our metrics.

A step without any, or with a value that is not finite, holds None.
"""


COUNTS = ("samples", "response_tokens")
"""Of one step: OpenRLHF logs them as the mean response and the number of samples, verl as all tokens and both means."""

_EVALUATION = re.compile(r"val-core/.+/mean@\d+|eval_.+_pass1")
"""verl's mean over the rollouts of each problem, and OpenRLHF's."""

Points = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Series:
    """``steps`` are the training steps logged, ascending; each list in ``values`` is as long.

    ``broken_norms`` are the steps at which the gradient norm was logged as NaN or infinity. ``evaluation`` maps the
    framework's name of each score to the steps of evaluation and its values.
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=lambda: {name: [] for name in (*KEYS, *COUNTS)})
    unreadable_lines: int = 0
    broken_norms: frozenset[int] = frozenset()
    evaluation: dict[str, Points] = field(default_factory=dict)

    def known(self, name: str, steps: frozenset[int] | None = None) -> list[float]:
        """The values of one series that are there, on ``steps`` if given, in order."""
        pairs = zip(*self.points(name), strict=True)
        return [v for step, v in pairs if steps is None or step in steps]

    def points(self, name: str) -> Points:
        """The steps at which one series has a value, and these values."""
        pairs = [(step, v) for step, v in zip(self.steps, self.values[name], strict=True) if v is not None]
        return [step for step, _ in pairs], [v for _, v in pairs]


def read_series(metrics: Path) -> Series:
    """Read a file of lines ``{"step": 1, "data": {...}}``, as verl's ``file`` logger writes; none is an empty one."""
    try:
        return series_of(json_lines(metrics))
    except FileNotFoundError:
        return Series()
    except OSError:  # a folder of that name, no permission
        return Series(unreadable_lines=1)


def framework_of(rows: Rows) -> str:
    """Whose name the training reward goes by."""
    verls, _ = KEYS["reward"]
    return "verl" if any(verls in data for data in rows.by_step.values()) else "openrlhf"


def series_of(rows: Rows) -> Series:
    """The series of a run in either framework's names."""
    found = sorted(rows.by_step.items())
    # Rows without a training reward are validation only.
    training = {step: data for step, data in found if any(key in data for key in KEYS["reward"])}
    values = {name: [value_of(data, name) for data in training.values()] for name in KEYS}
    counts = [_counts(data) for data in training.values()]
    broken = {
        step
        for step, data in training.items()
        if any(key in data for key in KEYS["grad_norm"]) and value_of(data, "grad_norm") is None
    }
    evaluation: dict[str, Points] = {}
    for step, data in found:
        for key in filter(_EVALUATION.fullmatch, data):
            if (score := number(data[key])) is not None:
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
    """Samples and response tokens of a step, None where what was logged does not tell."""
    samples, mean = number(data.get("rollout/num_samples")), number(data.get("rollout/response_length_mean"))
    if samples is None and (mean := number(data.get("response_length/mean"))) is not None:
        tokens, prompt = number(data.get("perf/total_num_tokens")), number(data.get("prompt_length/mean"))
        if tokens is not None and prompt is not None and mean + prompt > 0:
            samples = round(tokens / (mean + prompt))
    return samples, None if samples is None or mean is None else samples * mean


def value_of(data: Mapping[str, Any], name: str) -> float | None:
    """The value of one of our series in a step's metrics."""
    return next((number(data[key]) for key in KEYS[name] if key in data), None)


def number(value: object) -> float | None:
    """A finite float or None; verl's logger writes NaN and infinity as null."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
