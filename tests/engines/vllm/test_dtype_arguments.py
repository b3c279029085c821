# SPDX-License-Identifier: Apache-2.0
"""Every argument of the installed vLLM that decides a dtype is refused with another dtype."""

from __future__ import annotations

import pytest

from fp16_patch.engines.vllm.dtype_arguments import argument_names, refused_arguments

NAMES = sorted(name for name in argument_names() if name.endswith("dtype"))


def refused(**arguments: object) -> list[str]:
    return [key for key, _ in refused_arguments(arguments, "fp16")]


def test_the_names_are_those_of_the_installed_vllm() -> None:
    assert {"dtype", "kv_cache_dtype", "lora_dtype", "mamba_cache_dtype", "mamba_ssm_cache_dtype"} <= set(NAMES)
    assert "enable_log_requests" in argument_names(), "an argument of AsyncEngineArgs"


@pytest.mark.parametrize("name", NAMES)
def test_a_dtype_of_its_own(name: str) -> None:
    for value in ("bfloat16", "fp8", "fp8_e4m3", "nvfp4", 8):
        assert refused(**{name: value}) == [name], value
        assert refused(**{name.replace("_", "-"): value}) == [name.replace("_", "-")]
    for value in (None, "auto", "float16", "half"):
        assert refused(**{name: value}) == [], value


def test_a_state_space_cache_may_be_fp32() -> None:
    assert refused(mamba_ssm_cache_dtype="float32", mamba_cache_dtype="float32") == []
    assert refused(kv_cache_dtype="float32", lora_dtype="float32") == ["kv_cache_dtype", "lora_dtype"]


def test_an_argument_that_a_later_vllm_adds() -> None:
    assert refused(some_new_cache_dtype="bfloat16") == ["some_new_cache_dtype"]


def test_quantization_and_files_of_arguments() -> None:
    assert refused(quantization="fp8", quantization_config={}, config="serve.yaml") == [
        "quantization",
        "quantization_config",
        "config",
    ]
    assert refused(quantization=None, config=None, config_format="hf", seed=1, kv_cache_dtype_skip_layers=["0"]) == []


def test_an_abbreviation_that_vllms_parser_completes() -> None:
    assert refused(dty="bfloat16", lora_dt="bfloat16") == ["dty", "lora_dt"]
    assert refused(max_lo=1) == []


def test_names_inside_mappings_and_json() -> None:
    assert refused(hf_overrides={"text_config": {"dtype": "bfloat16"}, "torch_dtype": "float16"}) == [
        "hf_overrides.text_config.dtype"
    ]
    assert refused(speculative_config={"kv_cache_dtype": "fp8", "quantization": "fp8", "model": "m"}) == [
        "speculative_config.kv_cache_dtype",
        "speculative_config.quantization",
    ]
    assert refused(attention_config='{"indexer_kv_dtype": "fp8"}') == ["attention_config"]
    assert refused(attention_config='{"indexer_kv_dtype": "auto"}', compilation_config='{"mode": 3}') == []
    assert refused(kv_transfer_config={"config": "a file of its own"}, hf_overrides="{not json") == []
