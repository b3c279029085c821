# SPDX-License-Identifier: Apache-2.0
"""Compute the mismatch between rollout and training policy from their log-probs of the same sampled tokens.

All arithmetic is float64. The log-ratios to be measured can be as small as 1e-6. In float32 ``exp(x) - x - 1`` is then
noise: one rounding of ``exp(x)`` near 1 is 6e-8, and the value is 5e-13.

So the storage of the inputs limits the accuracy, not the arithmetic. Stored as float32, a log-prob is off by at most
``2**-24 * |log p|``, so x by at most ``2**-24 * (|log mu| + |log pi|)``: 1.2e-7 at log p = -1, 1.2e-6 at
log p = -10. The error of ``k3_kl`` is half its square, 7e-15 and 7e-13. FP16 engines differ by 1e-4 or more per token:
BF16 and FP16 mismatches are far above this error. With log-probs stored in half precision they would not be.
"""

from __future__ import annotations

import math

import torch

from fp16_patch.mismatch import METRIC_NAMES

_SERIES_BELOW = 0.1
_SERIES_TERMS = 9  # the tenth is below 5e-17 of the sum at |x| = 0.1


def mismatch_metrics(mu: torch.Tensor, pi: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Compare two policies on the tokens sampled from the rollout policy.

    ``mu`` and ``pi`` are log-probs in nats of the rollout and the training policy, of one shape: ``[tokens]`` or
    padded ``[batch, length]``. ``mask`` has that shape, boolean or 0/1. Masked elements are not read: padding may
    hold NaN. With x = log pi - log mu, the result holds, over unmasked tokens:

    - ``prob_diff_mean``: mean of |pi - mu| (probabilities);
    - ``pi_minus_mu_max``, ``pi_minus_mu_min``: the extremes of pi - mu;
    - ``log_ratio_abs_mean``: mean of |x|;
    - ``k1_kl``: mean of -x, the plain estimate of KL[mu|pi]; unbiased, but single batches may be negative;
    - ``k3_kl``: mean of ``expm1(x) - x``, Schulman's k3 estimate of KL[mu|pi]; never negative, far less noisy;
    - ``tokens``: the number of tokens compared;
    - ``non_finite_tokens``: the number of tokens left out, because a log-prob of theirs is inf or NaN.

    Without a token to compare every metric except the two counts is NaN.

    Raises:
        ValueError: The shapes differ.
    """
    if not mu.shape == pi.shape == mask.shape:
        raise ValueError(f"mu {tuple(mu.shape)}, pi {tuple(pi.shape)} and mask {tuple(mask.shape)} must have one shape")
    unmasked = mask.detach().bool()
    finite = unmasked & mu.detach().isfinite() & pi.detach().isfinite()
    log_mu = mu.detach()[finite].to(torch.float64)
    log_pi = pi.detach()[finite].to(torch.float64)
    counts = {"tokens": float(log_mu.numel()), "non_finite_tokens": float(unmasked.sum() - finite.sum())}
    if log_mu.numel() == 0:
        return dict.fromkeys(METRIC_NAMES, math.nan) | counts

    log_ratio = log_pi - log_mu
    # pi - mu is the larger of the two times (1 - exp(-|x|)), with a sign. Subtracting two exponentials would lose the
    # digits that matter. This form cannot overflow.
    diff = log_ratio.sign() * torch.maximum(log_mu, log_pi).exp() * -torch.expm1(-log_ratio.abs())
    values = torch.stack(
        [
            diff.abs().mean(),
            diff.max(),
            diff.min(),
            log_ratio.abs().mean(),
            -log_ratio.mean(),
            k3(log_ratio).mean(),
        ]
    ).tolist()
    return dict(zip(METRIC_NAMES, values, strict=False)) | counts


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """Return ``exp(x) - 1 - x`` elementwise for float64 x, to about 1e-14 relative wherever it does not overflow.

    Near zero ``expm1(x) - x`` loses digits too (half of them at x = 1e-8). There the Taylor series
    x**2/2! + x**3/3! + ... is summed.
    """
    small = log_ratio.clamp(-_SERIES_BELOW, _SERIES_BELOW)
    bracket = torch.ones_like(small)
    for n in range(_SERIES_TERMS + 1, 2, -1):
        bracket = 1 + small / n * bracket
    series = small * small / 2 * bracket
    return torch.where(log_ratio.abs() < _SERIES_BELOW, series, torch.expm1(log_ratio) - log_ratio)
