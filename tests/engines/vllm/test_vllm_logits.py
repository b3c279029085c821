# SPDX-License-Identifier: Apache-2.0
"""A vLLM worker counts logits that are not finite where the run says so, and says where it does not count."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from raising import raises_code

from fp16_patch import envs
from fp16_patch.engines.vllm.logits import sum_rows, take_rows
from fp16_patch.engines.vllm.precision import record_logits_dtype

LOGITS = torch.tensor([[0.0, math.nan], [math.inf, 0.0], [-math.inf, 0.0], [-math.inf, -math.inf], [1.0, 2.0]])


class Model:
    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


@pytest.fixture
def worker() -> SimpleNamespace:
    return SimpleNamespace(model_runner=SimpleNamespace(model=Model()))


def test_rows_with_nan_or_inf_are_counted_since_the_last_call(worker, monkeypatch):
    monkeypatch.setenv(envs.COUNT_LOGITS, "1")
    record_logits_dtype(worker)
    assert take_rows(worker) == 0
    for _ in range(2):
        worker.model_runner.model.compute_logits(LOGITS)
    assert take_rows(worker) == 4, "rows with NaN or +inf; -inf is a masked token"
    assert take_rows(worker) == 0


@pytest.mark.parametrize("value", ["0", None])
def test_a_run_that_asks_for_log_probs_looks_at_no_logits(worker, monkeypatch, value):
    monkeypatch.delenv(envs.COUNT_LOGITS, raising=False)
    if value is not None:
        monkeypatch.setenv(envs.COUNT_LOGITS, value)
    record_logits_dtype(worker)
    monkeypatch.setattr(torch.Tensor, "amax", None)  # the pass over all logits
    worker.model_runner.model.compute_logits(LOGITS)
    assert take_rows(worker) is None


def test_tensor_parallel_workers_see_the_same_rows():
    assert sum_rows({"server 0": [2, 2], "server 1": [1, 1], "server 2": [0]}) == 3
    assert sum_rows({}) == 0


@pytest.mark.parametrize("replies", [[None], [2, None], [], None])
def test_a_worker_that_should_count_and_does_not_is_named(replies):
    with raises_code("process-missing", "vLLM workers of server 1", envs.COUNT_LOGITS):
        sum_rows({"vLLM workers of server 0": [0], "vLLM workers of server 1": replies})
