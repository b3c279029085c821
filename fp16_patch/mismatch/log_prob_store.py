# SPDX-License-Identifier: Apache-2.0
"""The log-probs themselves, kept on disk for a measurement of the mismatch such as the paper's Figure 5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

FOLDER = "log_probs"
"""Beside the precision report, where ``fp16_patch.keep_log_probs`` is true."""


@dataclass(frozen=True)
class Kept:
    """Log-probs in nats of the tokens that were sampled, float32 ``[tokens]``, answer after answer.

    ``mu`` are the rollout's, ``pi`` the trainer's. ``lengths``, int64 ``[answers]``, says how many tokens each has.
    """

    mu: np.ndarray
    pi: np.ndarray
    lengths: np.ndarray

    def log_ratios(self) -> np.ndarray:
        """log pi - log mu of whole answers: float64 ``[answers]``."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        return np.add.reduceat(self.pi.astype(np.float64) - self.mu, starts) if len(self.lengths) else np.zeros(0)


def keep(folder: Path, mu: torch.Tensor, pi: torch.Tensor, mask: torch.Tensor) -> Path:
    """Write one batch into ``folder``, beside what is there. All three are padded ``[answers, length]``."""
    chosen = mask.detach().cpu().bool()
    lengths = chosen.sum(dim=1)
    answers = {
        "mu": mu.detach().cpu().float()[chosen].numpy(),
        "pi": pi.detach().cpu().float()[chosen].numpy(),
        "lengths": lengths[lengths > 0].numpy(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.glob('*.npz'))):06d}.npz"
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **answers)
    return unfinished.rename(path)


def read(folder: Path) -> Kept | None:
    """All batches of ``folder``, in order; None where there are none."""
    batches = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    if not batches:
        return None
    return Kept(*(np.concatenate([batch[name] for batch in batches]) for name in ("mu", "pi", "lengths")))
