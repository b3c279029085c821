# SPDX-License-Identifier: Apache-2.0
"""Save and load log-probs, and measure slope and KL as in the paper's Figure 5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp16_patch.mismatch.log_prob_store import LogProbs, load, save
from fp16_patch.mismatch.offline import measure_offline

torch = pytest.importorskip("torch")


def test_loads_batches_in_order_without_padding(tmp_path: Path) -> None:
    nan = float("nan")
    for number in range(3):
        mu = torch.tensor([[-1.0 - number, -2.0, nan], [-3.0, nan, nan], [nan, nan, nan]])
        mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
        save(tmp_path / "log_probs", mu, mu + 0.5, mask)
    loaded = load(tmp_path / "log_probs")
    assert loaded is not None
    assert loaded.mu.tolist() == [-1, -2, -3, -2, -2, -3, -3, -2, -3]
    assert loaded.lengths.tolist() == [2, 1] * 3, "an answer without a token is none"
    assert loaded.log_ratios().tolist() == [1.0, 0.5] * 3


def test_stores_half_precision_exactly(tmp_path: Path) -> None:
    mu = torch.tensor([[-1.0009765625]], dtype=torch.bfloat16)
    save(tmp_path, mu, mu.float(), torch.ones(1, 1))
    loaded = load(tmp_path)
    assert loaded is not None
    assert loaded.mu.tolist() == mu.double().flatten().tolist()


def test_no_files_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "nowhere") is None


def test_an_unfinished_file_is_not_read(tmp_path: Path) -> None:
    one = torch.full((1, 2), -1.0)
    save(tmp_path, one, one, torch.ones(1, 2))
    (tmp_path / ".000001.npz.1234").write_bytes(b"PK")
    loaded = load(tmp_path)
    assert loaded is not None
    assert loaded.lengths.tolist() == [2]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=2, max_size=30).filter(lambda found: len(set(found)) > 1),
    drift=st.floats(-0.01, 0.01),
)
def test_the_slope_is_the_drift_of_every_token(lengths: list[int], drift: float) -> None:
    tokens = sum(lengths)
    mu = np.full(tokens, -1.0)
    found = measure_offline(LogProbs(mu, mu + drift, np.array(lengths)))
    assert found.slope_per_1000_tokens == pytest.approx(1000 * drift, abs=1e-9)
    assert found.sequence_kl == pytest.approx(-drift * tokens / len(lengths), abs=1e-9)
    assert (found.answers, found.tokens) == (len(lengths), tokens)


def test_standard_errors_match_least_squares_and_mean() -> None:
    lengths, chance = np.arange(10, 210), np.random.default_rng(0)
    noise = chance.normal(0, 0.5, 200)
    mu = np.full(lengths.sum(), -1.0)
    pi = mu - 1e-3
    pi[np.cumsum(lengths) - 1] += noise
    found = measure_offline(LogProbs(mu, pi, lengths))
    design = np.stack([np.ones(200), lengths], 1)
    ratios = noise - 1e-3 * lengths
    best, rest, *_ = np.linalg.lstsq(design, ratios, rcond=None)
    error = np.sqrt(np.linalg.inv(design.T @ design)[1, 1] * rest[0] / 198)
    assert found.slope_per_1000_tokens == pytest.approx(1000 * best[1])
    assert found.slope_per_1000_tokens_standard_error == pytest.approx(1000 * error)
    assert found.sequence_kl_standard_error == pytest.approx(ratios.std(ddof=1) / np.sqrt(200))


def test_two_answers_have_a_slope_without_an_error() -> None:
    found = measure_offline(LogProbs(np.zeros(3), np.ones(3), np.array([1, 2])))
    assert found.slope_per_1000_tokens == 1000
    assert found.slope_per_1000_tokens_standard_error is None


def test_answers_of_one_length_have_no_slope() -> None:
    found = measure_offline(LogProbs(np.zeros(4), np.ones(4), np.array([2, 2])))
    assert found.slope_per_1000_tokens is None
    assert found.sequence_kl == -2
