# SPDX-License-Identifier: Apache-2.0
"""Measure the mismatch of stored log-probs as the paper's Figure 5 does: log-ratio by answer length, and the KL."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fp16_patch.mismatch.log_prob_store import LogProbs


@dataclass(frozen=True)
class OfflineMismatch:
    """The mismatch over whole answers, in nats.

    - ``slope_per_1000_tokens``: slope of the least-squares line through (tokens, log pi - log mu) of each answer; None
      if all answers are equally long;
    - ``slope_per_1000_tokens_standard_error``: None for fewer than three answers;
    - ``sequence_kl``: mean of log mu - log pi over answers, the k1 estimate of KL[mu|pi]; None for no answer;
    - ``sequence_kl_standard_error``: None for fewer than two answers;
    - ``answers`` and ``tokens``: the numbers measured;
    - ``non_finite_answers``: answers left out, because a log-prob of theirs is inf or NaN.
    """

    slope_per_1000_tokens: float | None
    slope_per_1000_tokens_standard_error: float | None
    sequence_kl: float | None
    sequence_kl_standard_error: float | None
    answers: float
    tokens: float
    non_finite_answers: float = 0.0


def measure_offline(log_probs: LogProbs) -> OfflineMismatch:
    """Fit the log-ratio of answers over their length, and estimate the KL."""
    ratios, lengths = log_probs.log_ratios(), log_probs.lengths.astype(np.float64)
    finite = np.isfinite(ratios)
    left_out = float((~finite).sum())
    ratios, lengths = ratios[finite], lengths[finite]
    if not len(ratios):
        return OfflineMismatch(None, None, None, None, answers=0.0, tokens=0.0, non_finite_answers=left_out)
    deviations = lengths - lengths.mean()
    spread, count = float(deviations @ deviations), len(lengths)
    slope = float(deviations @ ratios) / spread if spread else None
    slope_error = None
    if slope is not None and count > 2:
        residuals = ratios - ratios.mean() - slope * deviations
        slope_error = math.sqrt(float(residuals @ residuals) / (count - 2) / spread)
    return OfflineMismatch(
        slope_per_1000_tokens=None if slope is None else 1000 * slope,
        slope_per_1000_tokens_standard_error=None if slope_error is None else 1000 * slope_error,
        sequence_kl=float(-ratios.mean()),
        sequence_kl_standard_error=float(ratios.std(ddof=1)) / math.sqrt(count) if count > 1 else None,
        answers=float(count),
        tokens=float(lengths.sum()),
        non_finite_answers=left_out,
    )
