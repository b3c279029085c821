# SPDX-License-Identifier: Apache-2.0
"""Save log-probs of both engines on disk, to measure the mismatch offline as in the paper's Figure 5."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fp16_patch.files import write_atomically

if TYPE_CHECKING:
    import torch

FOLDER = "log_probs"
"""Folder next to the precision report, written if ``fp16_patch.keep_log_probs`` is true."""


@dataclass(frozen=True)
class LogProbs:
    """Log-probs of the sampled tokens in nats, float32 ``[tokens]``, answer after answer.

    ``mu`` is the rollout policy, ``pi`` the training policy. ``lengths`` counts each answer's tokens, int64
    ``[answers]``.
    """

    mu: np.ndarray
    pi: np.ndarray
    lengths: np.ndarray

    def log_ratios(self) -> np.ndarray:
        """Return log pi - log mu summed over each answer, float64 ``[answers]``."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        return np.add.reduceat(self.pi.astype(np.float64) - self.mu, starts) if len(self.lengths) else np.zeros(0)


def save(folder: Path, mu: torch.Tensor, pi: torch.Tensor, mask: torch.Tensor) -> Path:
    """Write one batch into a new file in ``folder``. ``mu``, ``pi`` and ``mask`` are padded ``[answers, length]``."""
    chosen = mask.detach().cpu().bool()
    lengths = chosen.sum(dim=1)
    answers = {
        "mu": mu.detach().cpu().float()[chosen].numpy(),
        "pi": pi.detach().cpu().float()[chosen].numpy(),
        "lengths": lengths[lengths > 0].numpy(),
    }
    content = io.BytesIO()
    np.savez_compressed(content, **answers)
    return write_atomically(folder / f"{len(list(folder.glob('*.npz'))):06d}.npz", content.getvalue())


def load(folder: Path) -> LogProbs | None:
    """Return all batches in ``folder``, in order, or None if there are none."""
    batches = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    if not batches:
        return None
    return LogProbs(*(np.concatenate([batch[name] for batch in batches]) for name in ("mu", "pi", "lengths")))
