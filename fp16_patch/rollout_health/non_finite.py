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
    bad = ~torch.isfinite(log_probs.detach()) & mask.detach().bool()
    tokens = int(bad.count_nonzero())
    first = bad.nonzero()[:1].tolist() if tokens else []
    return NonFinite(
        affected=bad.any(dim=1),
        tokens=tokens,
        first=(first[0][0], first[0][1]) if first else None,
    )
