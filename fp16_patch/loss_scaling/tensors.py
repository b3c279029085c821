# SPDX-License-Identifier: Apache-2.0
"""Find the plain tensors in what models and losses take and return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a DTensor, the elements of a nested tensor, any other tensor itself."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.values() if part.is_nested else part


def under_mask(tensor: torch.Tensor, masks: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Return the elements of ``tensor`` that the first mask of its shape keeps, all of them if no mask has its shape.

    A shape is that of the leading dimensions, and padding does not matter: a nested tensor ``[answers, tokens]`` has
    the shape of a padded one that is long enough.
    """
    for mask in masks:
        if mask is not None and (aligned := _aligned(tensor, mask)) is not None:
            part, kept = aligned
            return part[kept.bool()]
    return local(tensor)


def _aligned(tensor: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return both as plain tensors, element by element, or None if their shapes differ."""
    if tensor.is_nested and mask.is_nested:
        return (local(tensor), local(mask)) if torch.equal(tensor.offsets(), mask.offsets()) else None
    if not tensor.is_nested and not mask.is_nested:
        part, kept = local(tensor), local(mask)
        return (part, kept) if part.shape[: kept.dim()] == kept.shape else None
    nested, padded = (tensor, local(mask)) if tensor.is_nested else (mask, local(tensor))
    lengths = nested.offsets().diff().tolist()
    if padded.dim() < 2 or len(padded) != len(lengths) or padded.shape[1] < max(lengths, default=0):
        return None
    cut = torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])
    return (local(tensor), cut) if tensor.is_nested else (cut, local(mask))


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
