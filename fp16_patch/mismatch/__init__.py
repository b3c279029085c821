# SPDX-License-Identifier: Apache-2.0
"""Measure the mismatch between the training policy pi and the rollout policy mu. Needs torch, no RL framework."""

METRIC_PREFIX = "mismatch/"
METRIC_NAMES = (
    "prob_diff_mean",
    "pi_minus_mu_max",
    "pi_minus_mu_min",
    "log_ratio_abs_mean",
    "k1_kl",
    "k3_kl",
    "tokens",
    "non_finite_tokens",
)
"""What :func:`fp16_patch.mismatch.metrics.mismatch_metrics` returns; logged with the prefix."""
