# SPDX-License-Identifier: Apache-2.0
"""Count the rows of vLLM's logits that are not finite, in each worker.

Where nobody asks vLLM for log-probs, the logits are the only sign of an overflow. A row is one position of one
sequence. Masked logits are -inf, so only NaN and +inf count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fp16_patch.attached_state import attached

NON_FINITE_LOGITS = "fp16_patch_non_finite_logits"
"""Name of the method that is added to a framework's worker extension, and called in every vLLM worker."""


@dataclass
class LogitsState:
    """State on a vLLM worker: rows that were not finite since the last call, as a tensor on its device."""

    rows: Any = None


def count_rows(worker: Any, logits: Any) -> None:
    """Count the rows of ``logits`` ``[rows, vocabulary]`` that hold NaN or +inf. Does not wait for the device."""
    largest = logits.amax(dim=-1)  # NaN if one element is; -inf in a row that is masked throughout
    bad = (largest.isnan() | largest.isposinf()).sum()
    state = attached(worker, LogitsState)
    state.rows = bad if state.rows is None else state.rows + bad


def take_rows(worker: Any) -> int:
    """Return the rows counted since the last call."""
    state = attached(worker, LogitsState)
    rows, state.rows = state.rows, None
    return 0 if rows is None else int(rows)


def count_method(_original: None) -> Callable[..., int]:
    """Make the method of that name."""

    def fp16_patch_non_finite_logits(self: Any) -> int:
        return take_rows(self)

    return fp16_patch_non_finite_logits
