# SPDX-License-Identifier: Apache-2.0
"""Which modules a pattern names, what is refused, and what becomes of a module that is to compute in FP32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from raising import raises_code
from torch import nn

from fp16_patch.fp32_modules import compute_in_fp32, find_fp32_modules, format_names, list_fp32_modules


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.down_proj = nn.Linear(4, 4)
        self.act_fn = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate(x)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(12))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.model = Decoder()
        self.lm_head = nn.Linear(4, 8, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model(tokens))


def found(model: nn.Module, *patterns: str, elsewhere: tuple[str, ...] = ()) -> list[str]:
    return [fp32_module.name for fp32_module in find_fp32_modules(model, patterns, elsewhere)]


def refusal(model: nn.Module, *patterns: str, code: str = "fp32-modules-refused") -> str:
    with raises_code(code) as caught:
        find_fp32_modules(model, patterns)
    assert caught.value.what.startswith("fp16_patch.fp32_modules: ")
    assert caught.value.allowed
    assert caught.value.next_step
    return caught.value.what.removeprefix("fp16_patch.fp32_modules: ")


def test_names_and_patterns() -> None:
    assert found(Model(), "lm_head") == ["lm_head"]
    assert found(Model(), "*.mlp.gate") == [f"model.layers.{i}.mlp.gate" for i in range(12)]
    assert found(Model(), "*.1[01].norm", "lm_head") == ["model.layers.10.norm", "model.layers.11.norm", "lm_head"]
    assert found(Model()) == []


def test_a_pattern_meets_the_whole_name_and_case_counts() -> None:
    assert "'gate'" in refusal(Model(), "gate", code="fp32-modules-not-found")
    assert "'LM_HEAD'" in refusal(Model(), "LM_HEAD", code="fp32-modules-not-found")


def test_the_outermost_module_is_kept_and_covers_what_is_inside() -> None:
    assert found(Model(), "*.0.mlp*", "*.0.mlp.gate") == ["model.layers.0.mlp"]


def test_a_list_of_modules_stands_for_its_modules() -> None:
    assert found(Model(), "model.layers") == [f"model.layers.{i}" for i in range(12)]


def test_modules_without_parameters_are_left_out_beside_others() -> None:
    assert found(Model(), "*.3.mlp.*") == ["model.layers.3.mlp.gate", "model.layers.3.mlp.down_proj"]


def test_modules_without_parameters_alone_are_refused() -> None:
    said = refusal(Model(), "*.act_fn")
    assert said.startswith("'*.act_fn' ")
    assert "(model.layers.*.mlp.act_fn (12))" in said


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("lm_haed", "lm_head"),
        ("*.mlp.gates", "model.layers.*.mlp.gate"),
        ("model.layers.12.norm", "model.layers.*.norm"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(pattern: str, nearest: str) -> None:
    said = refusal(Model(), "lm_head", pattern, code="fp32-modules-not-found")
    assert said.startswith(f"{pattern!r} ")
    assert nearest in said.removeprefix(repr(pattern))


def test_heads_of_another_model_need_no_match() -> None:
    assert found(Model(), "lm_head", "score", elsewhere=("score",)) == ["lm_head"]
    assert found(Model(), "sco*", elsewhere=("score",)) == []


@pytest.mark.parametrize("patterns", [("lm_head",), ("lm_head", "model.embed_tokens")])
def test_a_shared_parameter_is_refused_naming_both(patterns: tuple[str, ...]) -> None:
    said = refusal(Model(tied=True), *patterns)
    assert {"lm_head", "model.embed_tokens"} <= set(said.replace(",", "").split())


def test_a_parameter_shared_inside_is_fine() -> None:
    model = Model()
    model.model.layers[0].mlp.down_proj.weight = model.model.layers[0].mlp.gate.weight
    assert found(model, "*.0.mlp") == ["model.layers.0.mlp"]


@pytest.mark.parametrize("patterns", [("*",), ("model", "lm_head"), ("model.*", "lm_head")])
def test_the_whole_model_is_refused(patterns: tuple[str, ...]) -> None:
    assert refusal(Model(), *patterns)


def test_lora_layers_go_by_their_plain_names_and_take_their_adapters_along() -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["gate", "lm_head"])
    model = peft.get_peft_model(Model(), lora)
    (gate, head) = find_fp32_modules(model, ["*.layers.0.mlp.gate", "lm_head"])
    assert (gate.name, head.name) == ("model.layers.0.mlp.gate", "lm_head")
    assert sum(p.requires_grad for p in gate.module.parameters()) == 2, "the adapter is not inside"
    assert found(model, "model.layers.0.norm") == ["model.layers.0.norm"]


def test_names_in_words() -> None:
    names = ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(48)), "model.layers.7.norm"]
    assert format_names(names) == "lm_head, model.layers.*.mlp.gate (48), model.layers.7.norm"
    assert format_names([]) == ""


def kept(model: nn.Module, *patterns: str) -> nn.Module:
    for fp32_module in find_fp32_modules(model, patterns):
        compute_in_fp32(fp32_module, "cpu")
    return model


def test_autocast_is_off_inside_and_on_around() -> None:
    model = kept(Model(), "*.0.mlp.down_proj")
    mlp = model.model.layers[0].mlp
    with torch.autocast("cpu", dtype=torch.float16):
        assert mlp.gate(torch.ones(1, 4)).dtype == torch.float16
        assert mlp.down_proj(torch.ones(1, 4)).dtype == torch.float32
        assert mlp(torch.ones(1, 4)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")


def test_half_precision_inputs_are_widened_and_others_left_alone() -> None:
    seen: list[Any] = []

    class Anything(nn.Linear):
        def forward(self, *args: Any, **kwargs: Any) -> None:
            seen.append((args, kwargs))

    half = torch.ones(2, dtype=torch.float16)
    model = kept(nn.ModuleDict({"a": Anything(2, 2), "b": nn.Linear(2, 2)}), "a")
    model["a"](half, (half, [half]), position=half, tokens=torch.ones(2, dtype=torch.int64), flag=True)
    (((first, (second, (third,))), named),) = seen
    assert {t.dtype for t in (first, second, third, named["position"])} == {torch.float32}
    assert named["tokens"].dtype == torch.int64
    assert named["flag"] is True


def test_gradients_pass_through_the_casts() -> None:
    model = kept(Model(), "lm_head")
    x = torch.ones(1, 4, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        model.lm_head(x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float16
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_autocast_is_on_again_after_an_error_inside() -> None:
    model = kept(Model(), "lm_head")
    with torch.autocast("cpu", dtype=torch.float16):
        with pytest.raises(RuntimeError):
            model.lm_head(torch.ones(1, 3))
        assert torch.is_autocast_enabled("cpu")


def test_fp32_modules_are_found_again_by_name() -> None:
    model = kept(Model(), "*.mlp.gate", "lm_head")
    assert [fp32_module.name for fp32_module in list_fp32_modules(model)] == found(Model(), "*.mlp.gate", "lm_head")
    assert list_fp32_modules(Model()) == []
