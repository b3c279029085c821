# SPDX-License-Identifier: Apache-2.0
"""Count the rows of vLLM's logits that are not finite, in each worker of a run that asks vLLM for no log-probs.

There the logits are the only sign of an overflow. Elsewhere the log-probs are counted, and the logits are not. A row is
one position of one sequence. Masked logits are -inf, so only NaN and +inf count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fp16_patch import envs
from fp16_patch.attached_state import attached
from fp16_patch.errors import Fp16PatchError

NON_FINITE_LOGITS = "fp16_patch_non_finite_logits"
"""Name of the method that is added to a framework's worker extension, and called in every vLLM worker."""


@dataclass
class LogitsState:
    """State on a vLLM worker: rows that were not finite since the last call, as a tensor on its device."""

    rows: Any = None
    counting: bool = False
    """Whether all logits of the worker pass through :func:`count_rows`."""


def start_counting(worker: Any) -> bool:
    """Return whether this worker must count, as the driver has said in the environment."""
    state = attached(worker, LogitsState)
    state.counting = os.environ.get(envs.COUNT_LOGITS) == "1"
    return state.counting


def count_rows(worker: Any, logits: Any) -> None:
    """Count the rows of ``logits`` ``[rows, vocabulary]`` that hold NaN or +inf. Does not wait for the device."""
    largest = logits.amax(dim=-1)  # NaN if one element is; -inf in a row that is masked throughout
    bad = (largest.isnan() | largest.isposinf()).sum()
    state = attached(worker, LogitsState)
    state.rows = bad if state.rows is None else state.rows + bad


def take_rows(worker: Any) -> int | None:
    """Return the rows counted since the last call; None if this worker does not count."""
    state = attached(worker, LogitsState)
    rows, state.rows = state.rows, None
    if not state.counting:
        return None
    return 0 if rows is None else int(rows)


def count_method(_original: None) -> Callable[..., int | None]:
    """Make the method of that name."""

    def fp16_patch_non_finite_logits(self: Any) -> int | None:
        return take_rows(self)

    return fp16_patch_non_finite_logits


def sum_rows(replies: Mapping[str, list[int | None] | None]) -> int:
    """Return the rows that were not finite, of all servers together.

    Args:
        replies: Server -> what each of its workers returned. Tensor-parallel ranks count the same rows.

    Raises:
        Fp16PatchError: A worker does not count.
    """
    total = 0
    for server, rows in replies.items():
        counts = [count for count in rows or [None] if count is not None]
        if len(counts) != len(rows or [None]):
            raise Fp16PatchError(
                f"{server}: a worker does not count the logits that are not finite: {rows}",
                code="process-missing",
                allowed="a count from every vLLM worker of a run that asks vLLM for no log-probs",
                next_step=f"see that nothing removes {envs.COUNT_LOGITS} from that process's environment",
            )
        total += max(counts)
    return total
