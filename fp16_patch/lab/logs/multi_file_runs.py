# SPDX-License-Identifier: Apache-2.0
"""Read one arm whose metrics are in several files. Files of one run log the same value of a metric at a step."""

from __future__ import annotations

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
    merged, first_seen = StepMetrics(), dict[tuple[int, str], tuple[Any, Path]]()
    for path in paths:
        log = read_log(path)
        merged.unreadable += log.unreadable
        for step, data in log.by_step.items():
            merged.by_step.setdefault(step, {}).update(data)
            for name, value in data.items():
                first, first_path = first_seen.setdefault((step, name), (value, path))
                if not name.startswith(_WANDB_PREFIX) and not _same(first, value):
                    raise Fp16PatchError(
                        f"{arm}: {name} at step {step} is {first} in {first_path} and {value} in {path}",
                        code="logs-contradict",
                        allowed="several files of one run",
                        next_step="pass the files of one run; if it was resumed, leave out the steps it ran twice",
                    )
    return merged


def _same(value: Any, other: Any) -> bool:
    """Compare two logged values. NaN is written as null, as text or as itself."""
    number, other_number = finite_number(value), finite_number(other)
    if number is None or other_number is None:
        return number is other_number
    return math.isclose(number, other_number, rel_tol=_RELATIVE_ROUNDING)
