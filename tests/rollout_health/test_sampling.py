# SPDX-License-Identifier: Apache-2.0
"""Which sampling parameters change the distribution."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fp16_patch.rollout_health.sampling import (
    NEUTRAL,
    accept,
    changed_requests,
    distribution_parameters,
    metrics,
    refuse_changed,
)


def parameters(**changed: Any) -> SimpleNamespace:
    neutral = {name: values[0] for name, values in NEUTRAL.items()}
    return SimpleNamespace(**(neutral | {"temperature": 1.0} | changed))


def test_neutral_parameters_leave_only_the_temperature() -> None:
    assert distribution_parameters(parameters()) == [("temperature", "1")]
    assert distribution_parameters(parameters(top_k=-1)) == [("temperature", "1")]


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.8), ("top_k", 20), ("min_p", 0.1), ("repetition_penalty", 1.2), ("logit_bias", {3: 1.0})],
)
def test_a_parameter_that_changes_the_distribution_is_named(name: str, value: Any) -> None:
    assert (name, str(value)) in distribution_parameters(parameters(**{name: value}))


def test_the_configured_temperature_and_accepted_settings_are_no_change() -> None:
    counts = {("temperature", "0.7"): 3, ("top_p", "0.9"): 3}
    assert not changed_requests(counts, accept(temperature=0.7, top_p=0.9))
    assert changed_requests(counts, accept(temperature=1.0)) == counts


def test_metrics_count_by_parameter() -> None:
    changed = changed_requests({("top_p", "0.8"): 2, ("top_p", "0.9"): 1, ("min_p", "0.1"): 4}, ())
    assert metrics(changed) == {
        "rollout/changed_sampling": 7.0,
        "rollout/changed_sampling/min_p": 4.0,
        "rollout/changed_sampling/top_p": 3.0,
    }
    assert metrics(changed_requests({}, ())) == {"rollout/changed_sampling": 0.0}


def test_the_error_names_parameter_value_and_count() -> None:
    error = refuse_changed(changed_requests({("top_p", "0.8"): 2}, ()), 3, 1.0)
    assert error.code == "sampling-changed"
    assert "top_p=0.8 (2 requests)" in str(error)


def test_structured_outputs_are_masked_before_raw_log_probs_are_taken() -> None:
    changed = changed_requests({("top_p", "0.8"): 2, ("structured_outputs", "..."): 1}, ())
    assert "with structured_outputs they are those of the tokens allowed" in refuse_changed(changed, 3, 1.0, "raw").what
    assert "tokens allowed" not in refuse_changed(changed_requests({("top_p", "0.8"): 2}, ()), 3, 1.0, "raw").what


def test_every_neutral_name_is_a_parameter_of_the_installed_vllm() -> None:
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    known = set(vllm.SamplingParams.__struct_fields__) | {"logits_processors"}
    assert set(NEUTRAL) <= known
    assert distribution_parameters(vllm.SamplingParams()) == [("temperature", "1")]
