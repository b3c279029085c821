# SPDX-License-Identifier: Apache-2.0
"""Find the plain tensors in what models and losses take and return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a DTensor, the elements of a nested tensor, any other tensor itself."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.values() if part.is_nested else part


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors in nested tuples, lists and mappings (``ModelOutput`` is one)."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
