# SPDX-License-Identifier: Apache-2.0
"""Exchange Python objects between ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from fp16_patch.errors import Fp16PatchError

T = TypeVar("T")


def gather(mine: T, group: Any = None) -> list[T]:
    """Return ``mine`` of every rank of ``group`` (None: all ranks); collective. One element without a process group."""
    if not dist.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone


def from_rank_zero(read: Callable[[], T]) -> T:
    """Return rank 0's ``read()`` on every rank; collective. Its :class:`Fp16PatchError` is raised on every rank."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [read()]
        except Fp16PatchError as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Fp16PatchError):
        raise answer[0]
    result: T = answer[0]
    return result
