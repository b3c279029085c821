# SPDX-License-Identifier: Apache-2.0
"""The rows of one arm whose metrics lie in several files: of one run, so what two of them log at a step is the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.logs.readers import Rows, read_rows

_ROUNDED = 1e-6
"""TensorBoard keeps float32; relative."""
_WANDBS_OWN = "_"
"""What its columns of the clock begin with. They are of a call, and a step may have several."""


def read_together(arm: str, paths: Sequence[Path]) -> Rows:
    """Raises :class:`Fp16PatchError` naming the metric, the step and both files where two are of different runs."""
    read = [(path, read_rows(path)) for path in paths]
    for (one, here), (other, there) in itertools.combinations(read, 2):
        _refuse_two_values(arm, one, here, other, there)
    whole = Rows()
    for _, rows in read:
        whole.merge(rows)
    return whole


def _refuse_two_values(arm: str, one: Path, here: Rows, other: Path, there: Rows) -> None:
    for step in sorted(here.by_step.keys() & there.by_step.keys()):
        for name, value in here.by_step[step].items():
            again = there.by_step[step].get(name, value)
            if not name.startswith(_WANDBS_OWN) and not _same(value, again):
                raise Fp16PatchError(
                    f"{arm}: {name} at step {step} is {value} in {one} and {again} in {other}",
                    code="logs-contradict",
                    allowed="several files of one run",
                    next_step="give the files of one run; of a run that was resumed, leave out what it did twice",
                )


def _same(one: Any, other: Any) -> bool:
    """NaN is written as null, as text or as itself."""
    here, there = _finite(one), _finite(other)
    if here is None or there is None:
        return here is there
    return math.isclose(here, there, rel_tol=_ROUNDED)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
