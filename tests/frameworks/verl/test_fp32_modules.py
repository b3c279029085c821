# SPDX-License-Identifier: Apache-2.0
"""Test FP32 modules on verl's own engines, FSDP1 and FSDP2; see ``fp32_cases.py``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from raising import check_error, raises_code

from fp16_patch.frameworks.verl.trainer_fsdp.fp32_modules import build_with_fp32_modules, for_critics_only
from fp16_patch.precision import Precision
from fp16_patch.report.precision_report import merge_roles, precision_violations

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(450),
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed"),
]

STRATEGIES = pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
Outcomes = Callable[..., list[dict[str, Any]]]

ROWS = {
    "lm-head": "lm_head",
    "alone": "lm_head",
    "inside": "model.layers.*.mlp.down_proj (2)",
    "router": "model.layers.*.mlp.gate (2)",
    "layer": "model.layers.0",
    "lora": "model.layers.0.self_attn.q_proj, lm_head",
    "critic": "score",
}
ISLANDS = {
    "lm-head": ["lm_head"],
    "alone": ["lm_head"],
    "inside": ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"],
    "router": ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
    "layer": ["model.layers.0"],
    "lora": ["model.layers.0.self_attn.q_proj"],
    "critic": ["score"],
}
CASES = pytest.mark.parametrize("case", ROWS)


@STRATEGIES
@CASES
def test_every_product_inside_is_float32_and_exact_to_its_rounding(results: Outcomes, case: str, strategy: str) -> None:
    """The cases record operands and result of every linear product, in inference, training and recomputation."""
    for rank in results(f"fp32-{case}-{strategy}"):
        for name in ISLANDS[case]:
            assert rank["products"][name] > 0, f"{name} was never called"
            assert rank["dtypes"][name] == ["float32"]
            assert rank["error"][name] < 2e-6


@STRATEGIES
@CASES
def test_everything_else_computes_in_float16(results: Outcomes, case: str, strategy: str) -> None:
    for rank in results(f"fp32-{case}-{strategy}"):
        for name in set(rank["dtypes"]) - set(ISLANDS[case]):
            assert rank["products"][name] > 0, f"{name} was never called"
            assert all(dtypes.endswith("float16") for dtypes in rank["dtypes"][name])
            assert rank["error"][name] > 5e-5, "that is better than FP16 can be"


@STRATEGIES
@CASES
def test_the_report_lists_them_and_no_promise_is_broken(results: Outcomes, case: str, strategy: str) -> None:
    ranks = results(f"fp32-{case}-{strategy}")
    role = "critic" if case == "critic" else "actor"
    for when in ("built", "after"):
        rows = merge_roles([{"roles": {role: rank[when]}} for rank in ranks])
        assert rows[role]["fp32_modules"] == ROWS[case]
        assert rows[role]["compute"] == "float16"
        assert precision_violations(rows, Precision()) == []


@STRATEGIES
def test_float32_that_nobody_asked_for_breaks_the_promise(results: Outcomes, strategy: str) -> None:
    for rank in results(f"fp32-reference-{strategy}"):
        assert rank["rows"]["fp32_modules"] == "lm_head"
        assert precision_violations({"reference": rank["rows"]}, Precision()) == []
        (problem,) = precision_violations({"reference": rank["unasked"]}, Precision())
        check_error(problem, "precision-violated", "reference compute", "float16, float32")


@STRATEGIES
@CASES
def test_the_weights_are_the_checkpoints(results: Outcomes, case: str, strategy: str) -> None:
    for rank in results(f"fp32-{case}-{strategy}"):
        assert rank["loaded"] > 20
        assert rank["not_loaded"] == []


@STRATEGIES
@CASES
def test_they_are_trained_with_float32_gradients(results: Outcomes, case: str, strategy: str) -> None:
    ranks = results(f"fp32-{case}-{strategy}")
    # A rank may hold nothing of a small parameter.
    assert {dtype for rank in ranks for dtype in rank["gradients"]} == {"float32"}
    # An adapter does not train its layer's bias.
    untrained = ["model.layers.0.self_attn.q_proj.bias"] if case == "lora" else []
    for rank in ranks:
        assert rank["update_skipped"] == [0.0]
        assert rank["not_trained"] == untrained


@STRATEGIES
def test_what_follows_a_head_in_float32(results: Outcomes, strategy: str) -> None:
    assert [rank["after"]["logits"] for rank in results(f"fp32-lm-head-{strategy}")] == ["float32"] * 2
    assert [rank["after"]["values"] for rank in results(f"fp32-critic-{strategy}")] == ["float32"] * 2
    assert [rank["after"]["logits"] for rank in results(f"fp32-inside-{strategy}")] == ["float16"] * 2


def test_fsdp2_casts_back_at_the_next_layer_and_fsdp1_only_inside_its_products(results: Outcomes) -> None:
    (later,) = {tuple(rank["dtypes"]["model.layers.1"]) for rank in results("fp32-layer-fsdp2")}
    assert later == ("float16",)
    (later,) = {tuple(rank["dtypes"]["model.layers.1"]) for rank in results("fp32-layer-fsdp")}
    assert later == ("float16", "float32*float16->float16")


@STRATEGIES
def test_the_reference_too(results: Outcomes, strategy: str) -> None:
    for rank in results(f"fp32-reference-{strategy}"):
        assert rank["dtypes"] == {"lm_head": ["float32"]}


@STRATEGIES
def test_a_misspelt_name_builds_no_engine(outcomes: Outcomes, strategy: str) -> None:
    for outcome in outcomes(f"fp32-misspelt-{strategy}"):
        assert outcome["code"] == "fp32-modules-not-found"
        assert "fp16_patch.fp32_modules: 'lm_haed'" in outcome["error"]
        assert "lm_head" in outcome["error"], "it suggests the name"


@STRATEGIES
def test_a_model_that_was_not_sharded_so_is_refused(results: Outcomes, strategy: str) -> None:
    (rank,) = results(f"fp32-not-built-{strategy}")
    assert rank["code"] == "wrong-dtype-built"
    assert "fp16_patch.fp32_modules" in rank["error"]
    assert rank["restored"], "verl's names still are ours after the build"


def engine(**settings: Any) -> Any:
    model_config = SimpleNamespace(**{"model_type": "language_model", "use_fused_kernels": False} | settings)
    return SimpleNamespace(model_config=model_config)


def never(_engine: Any, _module: Any) -> Any:
    raise AssertionError("the model was built all the same")


def test_fused_kernels_and_an_lm_head_are_refused() -> None:
    import torch

    model = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2), "lm_head": torch.nn.Linear(2, 2)})
    with raises_code("fp32-modules-refused", "lm_head", "use_fused_kernels=False"):
        build_with_fp32_modules(never, engine(use_fused_kernels=True), model, ["lm_head"])


def test_attention_under_flash_attention_is_refused() -> None:
    import torch

    class OurAttention(torch.nn.Linear):
        pass

    model = torch.nn.ModuleDict({"block": torch.nn.Sequential(OurAttention(2, 2)), "lm_head": torch.nn.Linear(2, 2)})
    model.config = SimpleNamespace(_attn_implementation="flash_attention_2")
    with raises_code("fp32-modules-refused", "block", "flash_attention_2"):
        build_with_fp32_modules(never, engine(), model, ["block"])


def test_without_patterns_verl_builds_as_ever() -> None:
    assert build_with_fp32_modules(lambda _engine, module: module, engine(), "anything", ()) == "anything"


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [("score", True), ("v_head*", True), ("lm_head", False), ("*head*", False), ("*.mlp.gate", False), ("*", False)],
)
def test_patterns_that_only_a_critic_can_match(pattern: str, answer: bool) -> None:
    assert for_critics_only(pattern) is answer
