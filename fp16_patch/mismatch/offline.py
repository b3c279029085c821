# SPDX-License-Identifier: Apache-2.0
"""What the paper's Figure 5 reads off kept log-probs: how an answer's log-ratio grows with its length, and the KL."""

from __future__ import annotations

import math

import numpy as np

from fp16_patch.mismatch.log_prob_store import Kept


def measure(kept: Kept) -> dict[str, float | None]:
    """Of the answers in ``kept``:

    - ``slope_per_1000_tokens``: of the least-squares line through (tokens, log pi - log mu) of each answer, in nats;
      None where all are equally long;
    - ``slope_per_1000_tokens_standard_error``: None for two answers;
    - ``sequence_kl``: mean of log mu - log pi of whole answers, the plain estimate of KL[mu|pi], in nats;
    - ``sequence_kl_standard_error``;
    - ``answers`` and ``tokens``: how many.
    """
    ratios, lengths = kept.log_ratios(), kept.lengths.astype(np.float64)
    deviations = lengths - lengths.mean()
    spread, count = float(deviations @ deviations), len(lengths)
    slope = float(deviations @ ratios) / spread if spread else None
    slope_error = None
    if slope is not None and count > 2:
        rest = ratios - ratios.mean() - slope * deviations
        slope_error = math.sqrt(float(rest @ rest) / (count - 2) / spread)
    return {
        "slope_per_1000_tokens": None if slope is None else 1000 * slope,
        "slope_per_1000_tokens_standard_error": None if slope_error is None else 1000 * slope_error,
        "sequence_kl": float(-ratios.mean()),
        "sequence_kl_standard_error": float(ratios.std(ddof=1)) / math.sqrt(count) if count > 1 else None,
        "answers": float(count),
        "tokens": float(lengths.sum()),
    }
