# SPDX-License-Identifier: Apache-2.0
"""What the paper's Figure 5 reads off kept log-probs: how an answer's log-ratio grows with its length, and the KL."""

from __future__ import annotations

import numpy as np

from fp16_patch.mismatch.kept import Kept


def measure(kept: Kept) -> dict[str, float | None]:
    """Of the answers in ``kept``:

    - ``slope_per_1000_tokens``: of the least-squares line through (tokens, log pi - log mu) of each answer, in nats;
      None where all are equally long;
    - ``sequence_kl``: mean of log mu - log pi of whole answers, the plain estimate of KL[mu|pi], in nats;
    - ``answers`` and ``tokens``: how many.
    """
    ratios, lengths = kept.log_ratios(), kept.lengths.astype(np.float64)
    deviations = lengths - lengths.mean()
    spread = float(deviations @ deviations)
    return {
        "slope_per_1000_tokens": 1000 * float(deviations @ ratios) / spread if spread else None,
        "sequence_kl": float(-ratios.mean()),
        "answers": float(len(lengths)),
        "tokens": float(lengths.sum()),
    }
