# SPDX-License-Identifier: Apache-2.0
"""Find a loss that is not finite before it is scaled, and which of its inputs was not finite first.

Such a loss is not an overflow: no loss scale would make it finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fp16_patch.log import logger
from fp16_patch.loss_scaling.ranks import gather
from fp16_patch.loss_scaling.tensors import local, tensors_in, under_mask


@dataclass(frozen=True)
class BadLoss:
    """A loss that is not finite, and where that comes from."""

    source: str
    """Name of the first input that is not finite, or of the empty mask; empty if neither explains it."""
    detail: str
    """What is wrong with it, in words."""
    role: str = "model"
    """Whose loss it is."""
    rank: int = 0
    """Rank in the process group of the update."""


def check_loss(
    loss: torch.Tensor,
    inputs: Mapping[str, Any],
    masks: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    role: str = "model",
    *,
    outputs_like_masks: Callable[[], Mapping[str, Any]] | None = None,
) -> tuple[torch.Tensor, BadLoss | None]:
    """Return ``loss`` unchanged if it is finite. Otherwise return one that makes all gradients NaN, and its source.

    NaN gradients reach every rank, so each engine finds them as it finds an overflow and all ranks skip the update.
    Reads one number from the device.

    Args:
        loss: The loss before it is scaled, any shape.
        inputs: What the loss is computed from, by name: tensors (nested, DTensor or plain) or None, in the order in
            which they are looked at.
        masks: Masks of the tokens that count, looked at after the inputs. A number where the mask of its shape is 0
            is nobody's fault.
        outputs: The model's own outputs, looked at last.
        role: Names the model in the log.
        outputs_like_masks: Returns the outputs in the shape of a mask, where theirs is another; for a bad loss only.
    """
    if not loss.numel() or bool(loss.detach().isfinite().all()):
        return loss, None
    looked_at = outputs_like_masks() if outputs_like_masks else outputs or {}
    bad_loss = replace(_find_source(inputs, masks or {}, looked_at), role=role)
    poisoned = loss * torch.nan
    for tensor in tensors_in(dict(outputs or {})):
        if tensor.requires_grad:  # the loss may not depend on any of it, as with an empty mask
            poisoned = poisoned + (local(tensor) * torch.nan).sum()
    return poisoned, bad_loss


def log_bad_loss(bad_loss: BadLoss, update: int, so_far: int) -> None:
    """Log one line. ``update`` counts from 1; ``so_far`` updates were skipped for such a loss, this one included."""
    logger.warning(
        "%s, update %d: the loss of rank %d is not finite before it is scaled: %s; %d updates skipped for such a loss "
        "so far",
        bad_loss.role,
        update,
        bad_loss.rank,
        bad_loss.detail,
        so_far,
    )


def first_bad_loss(mine: BadLoss | None, group: Any = None) -> BadLoss | None:
    """Return the bad loss of the lowest rank of ``group`` that has one; collective, the same on every rank."""
    everyone = enumerate(gather(mine, group))
    return next((replace(bad_loss, rank=rank) for rank, bad_loss in everyone if bad_loss is not None), None)


def _find_source(inputs: Mapping[str, Any], masks: Mapping[str, Any], outputs: Mapping[str, Any]) -> BadLoss:
    return (
        _first_nonfinite(inputs.items(), masks)
        or _first_empty(masks.items())
        or _first_nonfinite(outputs.items(), masks)
        or _in_the_loss_function({**inputs, **outputs}, known_outputs=bool(outputs))
    )


def _in_the_loss_function(everything: Mapping[str, Any], *, known_outputs: bool) -> BadLoss:
    rest = (
        "the loss function itself overflows" if known_outputs else "the model's output or the loss function overflows"
    )
    if masked := _first_nonfinite(everything.items(), {}):
        return BadLoss(
            "",
            f"every input of the loss is finite where the mask is not 0: {rest}, or it reads masked numbers: "
            f"{masked.detail}, all where the mask is 0",
        )
    return BadLoss("", f"every input of the loss is finite: {rest}")


def _first_nonfinite(named: Iterable[tuple[str, Any]], masks: Mapping[str, Any]) -> BadLoss | None:
    for name, value in named:
        for tensor in tensors_in(value):
            part = under_mask(tensor.detach(), masks.values())
            if bad := int((~part.isfinite()).sum()):
                return BadLoss(name, f"{name} is not finite in {bad} of {part.numel()} elements")
    return None


def _first_empty(masks: Iterable[tuple[str, Any]]) -> BadLoss | None:
    for name, mask in masks:
        if mask is not None and not local(mask).any():
            return BadLoss(name, f"{name} is empty: no token counts")
    return None
