# SPDX-License-Identifier: Apache-2.0
"""What one rank reads and all must know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fp16_patch.errors import Fp16PatchError

T = TypeVar("T")


def from_rank_zero(read: Callable[[], T]) -> T:
    """``read()`` of rank 0, on every rank; collective. An error that reaches users is the same error on every rank."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [read()]
        except Fp16PatchError as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Fp16PatchError):
        raise answer[0]
    found: T = answer[0]
    return found
