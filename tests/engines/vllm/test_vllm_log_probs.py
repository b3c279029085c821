# SPDX-License-Identifier: Apache-2.0
"""What vLLM's log-probs are in each mode: facts on which the refusals of sampling settings rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

from fp16_patch.rollout_health.sampling import distribution_parameters  # noqa: E402
from fp16_patch.rollout_health.sampling_settings import LOWEST_TEMPERATURE  # noqa: E402

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def log_probs(mode: str, temperature: float = 1.0, top_p: float | None = None) -> torch.Tensor:
    """Return vLLM's log-probs of all tokens, ``[vocabulary]``, when it samples from ``LOGITS``."""
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

    none: Any = torch.empty(0)
    metadata = SamplingMetadata(
        temperature=torch.tensor([temperature]),
        all_greedy=False,
        all_random=True,
        top_p=None if top_p is None else torch.tensor([top_p]),
        top_k=None,
        generators={},
        max_num_logprobs=-1,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=[[]],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
    found = Sampler(logprobs_mode=mode)(LOGITS.clone(), metadata).logprobs_tensors  # type: ignore[arg-type]
    assert found is not None
    return found.logprobs[0]


def test_raw_log_probs_know_neither_temperature_nor_top_p() -> None:
    torch.testing.assert_close(log_probs("raw_logprobs", temperature=0.5, top_p=0.7), LOGITS[0].log_softmax(-1))


def test_processed_log_probs_are_those_at_the_temperature() -> None:
    torch.testing.assert_close(log_probs("processed_logprobs", temperature=0.5), (LOGITS[0] / 0.5).log_softmax(-1))


def test_processed_log_probs_are_those_of_the_cut_distribution() -> None:
    expected = torch.tensor([2.0, 1.0, -torch.inf, -torch.inf]).log_softmax(-1)
    torch.testing.assert_close(log_probs("processed_logprobs", top_p=0.7), expected)


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits"])
def test_the_modes_of_logits_return_no_log_probs(mode: str) -> None:
    torch.testing.assert_close(log_probs(mode), LOGITS[0])


def test_vllm_raises_a_low_temperature() -> None:
    assert vllm.SamplingParams(temperature=LOWEST_TEMPERATURE / 10).temperature == LOWEST_TEMPERATURE
    assert vllm.SamplingParams(temperature=0).temperature == 0


def test_a_generation_config_changes_no_parameter_that_a_request_has() -> None:
    request = vllm.SamplingParams()
    request.update_from_generation_config({"top_p": 0.5, "temperature": 0.1, "repetition_penalty": 2.0}, 1)
    assert distribution_parameters(request) == [("temperature", "1")]
