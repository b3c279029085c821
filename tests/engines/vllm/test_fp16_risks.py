# SPDX-License-Identifier: Apache-2.0
"""The tables of models that FP16 endangers, held against the source of the installed vLLM and Transformers."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.engines.vllm.fp16_risks import (
    GUARDED,
    GUARDED_BY_BOTH,
    NOT_COMPENSATED,
    UNGUARDED,
    describe_wrong_function,
    find_risks,
    warnings,
)
from fp16_patch.engines.vllm.fp16_support import float16_refusing_model_types
from fp16_patch.precision import Precision


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


def vllm_model_files() -> dict[str, str]:
    folder = package("vllm") / "model_executor" / "models"
    return {str(file.relative_to(folder).with_suffix("")): file.read_text() for file in folder.rglob("*.py")}


OTHER_USES = {
    "utils": "defines cast_overflow_tensors",
    "k2_horizon": "the dtype of a Triton kernel",
    "transformers/moe": "does not fuse a block whose output vLLM would then leave too small",
}
"""Files that mention FP16 and guard nothing."""


def test_every_guard_of_the_installed_vllm_is_in_a_table() -> None:
    pattern = re.compile(r"== torch\.float16|cast_overflow_tensors\(")
    found = {name for name, text in vllm_model_files().items() if pattern.search(text)}
    assert found == {risk.file for risk in GUARDED} | set(GUARDED_BY_BOTH) | set(OTHER_USES)


def test_the_tables_say_what_vllm_says() -> None:
    files = vllm_model_files()
    assert [risk.file for risk in GUARDED if risk.text not in files[risk.file]] == []
    assert [name for name, (text, _) in GUARDED_BY_BOTH.items() if text not in files[name]] == []
    for risk in UNGUARDED:
        assert "torch.float16" not in files[risk.file], f"{risk.file} has a guard now"
        assert not set(risk.model_types) & set(float16_refusing_model_types()), "vLLM refuses it now"


def test_where_the_trainer_guards_too() -> None:
    models = package("transformers") / "models"
    for _, file in GUARDED_BY_BOTH.values():
        assert re.search(r"dtype == torch\.float16:\s+clamp_value", (models / file).read_text()), file
    for risk in GUARDED:
        for model_type in risk.model_types:
            text = "".join(file.read_text() for file in (models / model_type).glob("modeling_*.py"))
            guard = re.search(r"dtype == torch\.float16", text)
            assert guard is None or model_type == "qwen2_5_omni", f"{model_type}: Transformers has a guard now"


def test_every_moe_layer_whose_factor_no_decoder_layer_makes_up_for_is_in_the_table() -> None:
    asks = re.compile(r"apply_routed_scale_to_output=(True|not )")
    found = {name for name, text in vllm_model_files().items() if asks.search(text) and "torch.float16" not in text}
    assert found == set(NOT_COMPENSATED)


@pytest.mark.timeout(180)
def test_vllms_own_moe_layer_in_fp16(real_layers: dict[str, Any]) -> None:
    """GLM-4's, with a factor of 2.5 on routed experts. When this fails, vLLM computes the model's function again."""
    gain = real_layers["moe_gain"]
    assert gain["torch.bfloat16"] == pytest.approx(1, abs=0.01)
    assert gain["torch.float16"] == pytest.approx(1 / 2.5, abs=0.01)


def described(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_last_vision_block_is_named(tmp_path: Path) -> None:
    model = described(tmp_path, model_type="qwen2_5_vl", vision_config={"depth": 24})
    (text,) = warnings("the.key", model, Precision())
    assert f"the.key={model}: visual.blocks.23 may overflow" in text
    assert 'fp16_patch.fp32_modules=["*visual.blocks.23.mlp"]' in text
    assert warnings("the.key", model, Precision(), trained=False) == [], "vLLM clamps it"
    assert warnings("the.key", model, Precision("bf16", "fp16")) == [], "vLLM clamps it"


def test_models_are_known_by_their_architecture_or_their_type(tmp_path: Path) -> None:
    for known in ({"architectures": ["DeepseekV3ForCausalLM"]}, {"model_type": "deepseek_v3"}):
        for factor, risks in ((2.5, 1), (1.0, 0)):
            model = described(tmp_path, routed_scaling_factor=factor, **known)
            assert len(find_risks(model, trained=True, served=True)) == risks, (known, factor)
            assert describe_wrong_function(model) is None, "its decoder layer makes up for it"


@pytest.mark.parametrize("model_type", ["gemma3n", "gemma4_text"])
def test_models_that_nothing_guards(tmp_path: Path, model_type: str) -> None:
    model = described(tmp_path, model_type="x", text_config={"model_type": model_type})
    assert len(find_risks(model, trained=True, served=False)) == 1
    assert len(find_risks(model, trained=False, served=True)) == 1
    assert find_risks(model, trained=False, served=False) == []


def test_a_function_that_vllm_does_not_compute(tmp_path: Path) -> None:
    text = {"model_type": "glm4_moe", "routed_scaling_factor": 2.5}
    assert "2.5" in str(describe_wrong_function(described(tmp_path, **text)))
    assert describe_wrong_function(described(tmp_path, model_type="glm4v_moe", text_config=text))
    laguna = {"architectures": ["LagunaForCausalLM"], "moe_routed_scaling_factor": 2.0}
    assert describe_wrong_function(described(tmp_path, **laguna))
    assert describe_wrong_function(described(tmp_path, model_type="glm4_moe", routed_scaling_factor=1.0)) is None
    assert describe_wrong_function(described(tmp_path, model_type="qwen2")) is None
    assert find_risks(described(tmp_path, model_type="qwen2"), trained=True, served=True) == []
