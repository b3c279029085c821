# SPDX-License-Identifier: Apache-2.0
"""Count the log-probs of a batch that are inf or NaN, before any importance weight, mask or loss reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NonFinite:
    """The sampled tokens of one batch whose log-prob is inf or NaN.

    ``affected`` is boolean ``[answers]``. ``first`` is the answer and the position of the first such token, counted
    from 0 in its row, or None.
    """

    affected: torch.Tensor
    tokens: int
    first: tuple[int, int] | None

    @property
    def answers(self) -> int:
        """Return the number of answers with at least one such token."""
        return int(self.affected.sum())

    @property
    def share(self) -> float:
        """Return the share of answers with at least one such token; 0 for an empty batch."""
        return self.answers / max(len(self.affected), 1)

    def metrics(self, engine: str) -> dict[str, float]:
        """Return the two counts as ``<engine>/non_finite_tokens`` and ``<engine>/non_finite_answers``."""
        return {
            f"{engine}/non_finite_tokens": float(self.tokens),
            f"{engine}/non_finite_answers": float(self.answers),
        }


def find_non_finite(log_probs: torch.Tensor, mask: torch.Tensor) -> NonFinite:
    """Find the unmasked log-probs that are not finite.

    ``log_probs`` (nats) and ``mask`` (boolean or 0/1) are padded ``[answers, length]``. Where the mask is false
    nothing is read, so padding may hold NaN.

    Raises:
        ValueError: The shapes differ.
    """
    if log_probs.shape != mask.shape:
        raise ValueError(f"log-probs {tuple(log_probs.shape)} and mask {tuple(mask.shape)} must have one shape")
    answers, length = log_probs.shape
    return find_in_answers(log_probs.flatten(), mask.flatten(), torch.arange(answers + 1) * length)


def find_in_answers(log_probs: torch.Tensor, mask: torch.Tensor, offsets: torch.Tensor) -> NonFinite:
    """Find the unmasked log-probs that are not finite, in answers that follow each other without padding.

    Args:
        log_probs: Nats, ``[tokens]``, one answer after the other.
        mask: Boolean or 0/1, ``[tokens]``. Where it is false nothing is read.
        offsets: Where each answer begins, and where the last one ends, ``[answers + 1]``.

    Raises:
        ValueError: The shapes differ.
    """
    if log_probs.shape != mask.shape:
        raise ValueError(f"log-probs {tuple(log_probs.shape)} and mask {tuple(mask.shape)} must have one shape")
    affected = torch.zeros(len(offsets) - 1, dtype=torch.bool)
    values = log_probs.detach()
    if values.sum().isfinite():  # a sum is not finite if one of its terms is not; twice as fast as looking at each
        return NonFinite(affected, tokens=0, first=None)
    bad = (~values.isfinite() & mask.detach().bool()).nonzero().flatten().cpu()
    offsets = offsets.cpu()
    rows = torch.searchsorted(offsets, bad, right=True) - 1
    affected[rows] = True
    first = (int(rows[0]), int(bad[0] - offsets[rows[0]])) if len(bad) else None
    return NonFinite(affected, tokens=len(bad), first=first)
