# SPDX-License-Identifier: Apache-2.0
"""Read one arm whose metrics are in several files. Files of one run log the same value of a metric at a step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.logs.readers import StepMetrics, read_log
from fp16_patch.lab.logs.series import finite_number

_RELATIVE_ROUNDING = 1e-6  # TensorBoard stores float32
_WANDB_PREFIX = "_"  # its clock columns change with every call, of which a step may have several


def read_logs(arm: str, paths: Sequence[Path]) -> StepMetrics:
    """Read the files of one run and merge them.

    Raises:
        Fp16PatchError: Two files contradict each other. Names the metric, the step and both files.
    """
    logs = [(path, read_log(path)) for path in paths]
    for (path, log), (other_path, other) in itertools.combinations(logs, 2):
        _refuse_contradictions(arm, path, log, other_path, other)
    merged = StepMetrics()
    for _, log in logs:
        merged.merge(log)
    return merged


def _refuse_contradictions(arm: str, path: Path, log: StepMetrics, other_path: Path, other: StepMetrics) -> None:
    for step in sorted(log.by_step.keys() & other.by_step.keys()):
        for name, value in log.by_step[step].items():
            other_value = other.by_step[step].get(name, value)
            if not name.startswith(_WANDB_PREFIX) and not _same(value, other_value):
                raise Fp16PatchError(
                    f"{arm}: {name} at step {step} is {value} in {path} and {other_value} in {other_path}",
                    code="logs-contradict",
                    allowed="several files of one run",
                    next_step="give the files of one run; if it was resumed, leave out the steps it ran twice",
                )


def _same(value: Any, other: Any) -> bool:
    """Compare two logged values. NaN is written as null, as text or as itself."""
    number, other_number = finite_number(value), finite_number(other)
    if number is None or other_number is None:
        return number is other_number
    return math.isclose(number, other_number, rel_tol=_RELATIVE_ROUNDING)
