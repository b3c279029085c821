# SPDX-License-Identifier: Apache-2.0
"""The mismatch metrics against exact arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fp16_patch.mismatch import METRIC_NAMES
from fp16_patch.mismatch.metrics import k3, mismatch_metrics

LOG_PROBS = st.floats(min_value=-40.0, max_value=0.0)
PAIRS = st.lists(st.tuples(LOG_PROBS, st.floats(min_value=-3.0, max_value=3.0)), min_size=1, max_size=20)


def exact(mu: list[float], pi: list[float]) -> dict[str, float]:
    with mpmath.workdps(150):  # x may be 1e-45, where exp(x) - 1 - x cancels 90 digits
        a, b = [mpmath.mpf(v) for v in mu], [mpmath.mpf(v) for v in pi]
        x = [q - p for p, q in zip(a, b, strict=True)]
        d = [mpmath.exp(q) - mpmath.exp(p) for p, q in zip(a, b, strict=True)]
        n = len(x)
        return {
            "prob_diff_mean": float(sum(abs(v) for v in d) / n),
            "pi_minus_mu_max": float(max(d)),
            "pi_minus_mu_min": float(min(d)),
            "log_ratio_abs_mean": float(sum(abs(v) for v in x) / n),
            "k1_kl": float(-sum(x) / n),
            "k3_kl": float(sum(mpmath.exp(v) - 1 - v for v in x) / n),
            "tokens": float(n),
            "non_finite_tokens": 0.0,
        }


@settings(max_examples=200, deadline=None)
@given(st.floats(min_value=-700.0, max_value=700.0))
@example(0.0)
@example(1e-5)
@example(-1e-8)
@example(1e-150)
@example(0.1)
@example(math.nextafter(0.1, 0))
def test_k3_has_13_digits_everywhere(x: float) -> None:
    with mpmath.workdps(800):
        truth = float(mpmath.exp(mpmath.mpf(x)) - 1 - mpmath.mpf(x))
    assert k3(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(truth, rel=2e-14, abs=5e-324)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.floats(min_value=1e-9, max_value=1.0))
def test_every_metric_equals_exact_arithmetic(pairs: list[tuple[float, float]], scale: float) -> None:
    mu = torch.tensor([p for p, _ in pairs], dtype=torch.float32)
    pi = torch.tensor([p + scale * d for p, d in pairs], dtype=torch.float32)
    got = mismatch_metrics(mu, pi, torch.ones_like(mu))
    want = exact(mu.tolist(), pi.tolist())
    assert set(got) == set(METRIC_NAMES)
    for name in METRIC_NAMES:
        # Means of signed terms cancel: their digits are counted from the size of the terms.
        floor = 1e-15 * (want["log_ratio_abs_mean"] if name == "k1_kl" else 1e-300)
        assert got[name] == pytest.approx(want[name], rel=1e-12, abs=floor), name


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_kl_and_extremes_keep_their_signs(pairs: list[tuple[float, float]]) -> None:
    mu = torch.tensor([p for p, _ in pairs])
    pi = torch.tensor([p + d for p, d in pairs])
    got = mismatch_metrics(mu, pi, torch.ones_like(mu, dtype=torch.bool))
    assert got["k3_kl"] >= 0
    assert got["pi_minus_mu_min"] <= got["pi_minus_mu_max"]
    assert got["prob_diff_mean"] <= max(abs(got["pi_minus_mu_min"]), abs(got["pi_minus_mu_max"])) * (1 + 1e-12)


def test_small_log_ratio_needs_float64() -> None:
    mu = torch.full((1000,), -0.01)
    pi = torch.full((1000,), -0.01 + 1e-5)
    x = (pi.double() - mu.double())[0].item()
    in_float32 = ((pi - mu).exp() - 1 - (pi - mu)).mean().item()
    got = mismatch_metrics(mu, pi, torch.ones(1000))["k3_kl"]
    assert got == pytest.approx(x * x / 2, rel=1e-5)
    assert abs(in_float32 - got) > 10 * got, "float32 would do: the float64 in metrics.py is no longer needed"


def test_the_stated_noise_floor_holds() -> None:
    """The same policy twice, once stored as float32: what is left is the documented floor."""
    generator = torch.Generator().manual_seed(0)
    exact_log_probs = -10 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    stored = exact_log_probs.float().double()
    got = mismatch_metrics(stored, exact_log_probs, torch.ones(20_000))
    bound = 2**-24 * 10
    assert 0 < got["log_ratio_abs_mean"] < bound
    assert 0 < got["k3_kl"] < bound**2 / 2


def test_padded_and_flat_agree_and_padding_is_never_read() -> None:
    generator = torch.Generator().manual_seed(1)
    mu = -torch.rand(3, 7, generator=generator)
    pi = mu + 1e-3 * torch.randn(3, 7, generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [3], [0]])
    flat = mismatch_metrics(mu[mask], pi[mask], torch.ones(10))
    mu[~mask] = math.nan
    pi[~mask] = math.inf
    assert mismatch_metrics(mu, pi, mask) == flat
    assert mismatch_metrics(mu, pi, mask.long()) == flat
    assert flat["tokens"] == 10


def test_an_empty_mask_gives_nan_and_no_tokens() -> None:
    got = mismatch_metrics(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    assert got.pop("tokens") == got.pop("non_finite_tokens") == 0
    assert len(got) == len(METRIC_NAMES) - 2
    assert all(math.isnan(v) for v in got.values())


def test_tokens_that_are_not_finite_are_counted_and_left_out() -> None:
    mu = torch.tensor([-1.0, -1.0, math.nan, -2.0])
    pi = torch.tensor([-math.inf, -1.5, -1.0, -2.0])
    got = mismatch_metrics(mu, pi, torch.tensor([1, 1, 1, 0]))
    assert (got["tokens"], got["non_finite_tokens"]) == (1, 2)
    finite = mismatch_metrics(mu[1:2], pi[1:2], torch.ones(1))
    assert {**got, "non_finite_tokens": 0.0} == finite


def test_without_a_finite_token_the_metrics_are_nan() -> None:
    got = mismatch_metrics(torch.full((2,), math.nan), torch.zeros(2), torch.ones(2))
    assert (got.pop("tokens"), got.pop("non_finite_tokens")) == (0, 2)
    assert all(math.isnan(value) for value in got.values())


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        mismatch_metrics(torch.zeros(2, 3), torch.zeros(3, 2), torch.ones(2, 3))
