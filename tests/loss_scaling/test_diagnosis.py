# SPDX-License-Identifier: Apache-2.0
"""What an overflow report says: the place where it began, told apart on real overflows, and what to try."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.fp32_modules import compute_in_fp32, find_islands
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.diagnosis.cause import Remedies, fp32_override
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow
from fp16_patch.loss_scaling.diagnosis.observations import Diagnosis, Losses, diagnose, parameter_overflow
from fp16_patch.loss_scaling.diagnosis.report import SHOWN, as_document, render, save

Module = torch.nn.Module
BF16 = Remedies().in_bf16
WIDTH = 8
ONES = torch.ones(2, WIDTH)
AT_FLOOR = {"init_scale": 1.0}


class Gated(Module):
    """``down(up(x) * up(x))``, the product by the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x) * self.up(x))


class Model(Module):
    """Weights such that everything is near 1, gradients too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.head = torch.nn.Linear(WIDTH, WIDTH), Gated(), torch.nn.Linear(WIDTH, 4)
        for name, parameter in self.named_parameters():
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1 / WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mlp(self.embed(x)))


def model(**weights: float) -> Model:
    """``embed``, ``up``, ``down`` and ``head`` multiplied."""
    built = Model()
    with torch.no_grad():
        for name, part in built.named_modules():
            if (short := name.rpartition(".")[2]) in weights:
                part.weight.mul_(weights[short])
    return built


def bad_start(scaler: FsdpLossScaler, updates: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    for _ in range(updates):
        scaler.record(optimizer, finite=False)
        scaler.update()


def total(output: torch.Tensor) -> torch.Tensor:
    return output.float().sum()


def examined(
    module: Module,
    loss: Callable[[torch.Tensor], torch.Tensor] = total,
    skipped: int = 4,
    x: torch.Tensor = ONES,
    **settings: Any,
) -> Diagnosis:
    """A diagnosis of one pass under FP16 autocast, after ``skipped`` skipped updates, at the scale they led to."""
    scaler = FsdpLossScaler(LossScaling(**settings), device="cpu")
    bad_start(scaler, skipped)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            output = module(x)
        scaler.scale(loss(output)).backward()

    found = diagnose(module, scaler, run, f"{skipped} updates in a row were skipped")
    assert "scale" not in vars(scaler), "the scaler was left changed"
    return found


def said(found: Diagnosis) -> str:
    return f"{found.cause}; {'; '.join(found.advice)}"


# Where it began.


def test_an_activation_overflows() -> None:
    found = examined(model(embed=1e6))
    assert (found.case, found.suspects) == ("forward", ["embed"])
    assert "100 % of the output of embed (Linear) is inf or NaN, and its inputs are finite" in found.cause
    assert "no loss scale helps: activations are not scaled" in found.advice
    assert "keep embed in FP32: fp16_patch.fp32_modules=[embed]" in found.advice
    assert BF16 in found.advice
    assert "init_scale" not in said(found)


def test_the_advice_for_an_activation_is_right() -> None:
    """With that module in FP32, as :mod:`fp16_patch.fp32_modules` does it, the pass is finite."""
    broken = torch.nn.Sequential()
    broken.add_module("wide", torch.nn.Linear(WIDTH, WIDTH))
    broken.add_module("norm", torch.nn.LayerNorm(WIDTH))
    broken.add_module("head", torch.nn.Linear(WIDTH, 4))
    torch.nn.init.constant_(broken.wide.weight, 1e4)
    found = examined(broken, skipped=16)
    assert "keep wide in FP32: fp16_patch.fp32_modules=[wide]" in found.advice
    (island,) = find_islands(broken, found.suspects)
    compute_in_fp32(island, "cpu")
    broken.zero_grad()
    mended = examined(broken, skipped=16)
    assert mended.case == "nothing", render(mended)


def test_a_product_between_modules_overflows() -> None:
    found = examined(model(up=1e3))
    assert (found.case, found.suspects) == ("forward", ["mlp"])
    assert "keep mlp in FP32: fp16_patch.fp32_modules=[mlp]" in found.advice


def test_an_activation_without_parameters_overflows() -> None:
    """``fp32_modules`` wants a module that holds weights: the one around it."""

    class Cube(Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x * x

    class Block(Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.cube = torch.nn.Linear(WIDTH, WIDTH), Cube()
            torch.nn.init.constant_(self.linear.weight, 10.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cube(self.linear(x))

    found = examined(torch.nn.ModuleDict({"block": Block()})["block"])
    assert (found.suspects, [line for line in found.advice if "fp32_modules" in line]) == (["cube"], [])
    whole = torch.nn.Sequential()
    whole.add_module("block", Block())
    found = examined(whole)
    assert found.suspects == ["block.cube"]
    assert "keep block in FP32: fp16_patch.fp32_modules=[block]" in found.advice


def test_the_inputs_of_the_model_are_not_finite() -> None:
    found = examined(model(), x=torch.full((2, WIDTH), math.nan))
    assert (found.case, found.suspects) == ("forward", ["embed"])
    assert "look at what goes into embed in this batch" in found.advice[0]
    assert "fp32_modules" not in said(found)


def test_an_overflow_outside_fp16_is_not_blamed_on_it() -> None:
    class Exponential(Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.float() * 1000).exp()

    found = examined(torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), Exponential()), x=ONES * 10)
    assert (found.case, found.suspects) == ("forward", ["1"])
    assert "not in FP16" in found.cause
    assert BF16 not in found.advice


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, AT_FLOOR])
def test_the_loss_is_not_finite(bad: float, settings: dict[str, float]) -> None:
    found = examined(model(), lambda output: total(output) * bad, **settings)
    assert (found.case, found.suspects) == ("loss", [])
    assert found.losses == Losses(peak=None, nonfinite=True, scaled_nonfinite=True)
    assert "the loss itself is inf or NaN" in found.cause
    assert "advantages, rewards, log-probs" in found.advice[0]
    assert "precision is not the cause" in found.advice[1]
    assert not [line for line in found.advice if "=" in line], "there is nothing to override"


def test_a_loss_that_the_model_computes_is_not_finite() -> None:
    class WithLoss(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).float().sum() * math.nan

    found = examined(WithLoss())
    assert (found.case, found.suspects) == ("loss", [])
    assert "the loss itself" in found.cause


def test_the_scaled_loss_overflows() -> None:
    found = examined(model(), lambda output: total(output).half() * 1000, skipped=0)
    assert found.case == "loss"
    assert found.losses.scaled_nonfinite
    assert not found.losses.nonfinite
    assert "overflows when it is multiplied by the scale" in found.cause
    assert found.advice[0] == "start 3 bits lower: fp16_patch.loss_scaling.init_scale=8192"


def test_the_loss_s_gradient_overflows() -> None:
    found = examined(model(), skipped=2, init_scale=2.0**20, x=ONES[:1])
    assert (found.case, found.suspects) == ("loss", ["head"])
    assert "with respect to the output of head" in found.cause
    assert found.advice == [
        "start 3 bits lower: fp16_patch.loss_scaling.init_scale=32768",
        "keep head in FP32: fp16_patch.fp32_modules=[head]",
        BF16,
    ]
    again = examined(model(), skipped=0, init_scale=32768, x=ONES[:1])
    assert again.case == "nothing", f"the advice did not help:\n{render(again)}"


def test_the_loss_s_gradient_is_not_finite_at_any_scale() -> None:
    """sqrt(0): a finite loss, an infinite gradient."""
    found = examined(model(), lambda output: (output.float() * 0).sqrt().sum(), **AT_FLOOR)
    assert found.case == "loss"
    assert "min_scale=1 already" in found.advice[0]
    assert any("advantages" in line for line in found.advice)


def test_a_gradient_overflows_on_the_way_back() -> None:
    """Between head, whose gradient is 4096, and down lies head's weight."""
    found = examined(model(head=40, embed=0.01), skipped=4)
    assert (found.case, found.suspects) == ("backward", ["mlp.down"])
    assert found.loss_scale == 4096
    assert "at loss scale 4096" in found.cause
    assert "the one before it, of head, is finite" in found.cause
    lower, fp32, bf16 = found.advice
    assert lower.startswith("start 3 bits lower: fp16_patch.loss_scaling.init_scale=512 (largest finite gradient ")
    assert "4096 in head, 4.0 bits below 65504" in lower
    assert fp32 == "keep mlp.down and head in FP32: fp16_patch.fp32_modules=[mlp.down,head]"
    assert bf16 == BF16
    again = examined(model(head=40, embed=0.01), skipped=0, init_scale=512)
    assert again.case == "nothing", f"the advice did not help:\n{render(again)}"


def test_a_gradient_overflows_at_the_floor() -> None:
    found = examined(model(head=4e5, embed=1e-6), skipped=20)
    assert (found.case, found.loss_scale) == ("backward", 1.0)
    assert found.advice[0].startswith("the loss scale is at min_scale=1 already, there is no lower one to start with")
    assert "init_scale" not in said(found)
    assert any("fp32_modules" in line for line in found.advice)
    assert BF16 in found.advice


def test_the_scale_that_is_advised_is_not_below_the_floor() -> None:
    found = examined(model(head=40, embed=0.01), skipped=4, min_scale=2048)
    assert found.advice[0].startswith("start 1 bits lower: fp16_patch.loss_scaling.init_scale=2048")


def test_only_a_parameter_s_gradient_overflows() -> None:
    """A sum over many tokens: every summand fits."""
    linear = torch.nn.Linear(1, 1, bias=False).half()
    found = examined(torch.nn.Sequential(linear), x=torch.ones(4096, 1), skipped=9)
    assert (found.case, found.suspects) == ("backward", ["0"])
    assert found.parameters == {"0.weight": 1.0}
    assert "the gradients of parameters are not: 0.weight (100 %)" in found.cause
    assert found.advice[0] == "start 3 bits lower: fp16_patch.loss_scaling.init_scale=16"
    assert "gradients with inf or NaN: 0.weight (100 %)" in render(found)


def test_weights_that_are_not_finite_are_nobody_s_overflow() -> None:
    broken = model()
    with torch.no_grad():
        broken.mlp.up.weight[0, :2] = math.nan
    found = examined(broken)
    assert (found.case, found.suspects) == ("weights", ["mlp.up"])
    assert found.weights == {"mlp.up.weight": 2 / WIDTH**2}
    assert "resume from a checkpoint whose weights are finite" in found.advice[0]


def test_nothing_overflows() -> None:
    found = examined(model(), skipped=4)
    assert (found.case, found.suspects) == ("nothing", [])
    assert "nothing overflows in this batch at loss scale 4096" in found.cause
    assert "gone at this scale, or came with other data" in found.advice[0]
    assert "init_scale=512" in found.advice[1]
    assert found.losses.peak == pytest.approx(8.0)


def test_nothing_overflows_and_nothing_did() -> None:
    found = examined(model(), skipped=0, init_scale=1024)
    assert found.advice == ["nothing to do"]


def test_an_overflow_that_reaches_no_gradient_is_told_and_not_blamed() -> None:
    class Side(Model):
        def __init__(self) -> None:
            super().__init__()
            self.side = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(False)
            torch.nn.init.constant_(self.side.weight, 1e5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.side(x)
            return super().forward(x)

    found = examined(Side(), skipped=0, init_scale=1024)
    assert found.case == "nothing"
    assert "the inf or NaN in the output of side reaches no gradient" in found.cause


# Which modules an override names, on rows like a large model's.


def row(module: str, backward: int, overflow: bool = False, **fields: Any) -> ModuleRow:
    return replace(
        ModuleRow(
            module=module,
            class_name="Linear",
            dtype="float16",
            has_parameters=True,
            forward_order=100 - backward,
            activation_peak=1.0,
            activation_nonfinite=0.0,
            forward_overflow=None,
            backward_order=backward,
            gradient_peak=None if overflow else float(backward + 1),
            gradient_nonfinite=float(overflow),
            first_overflow=backward if overflow else None,
        ),
        **fields,
    )


def diagnosis(*rows: ModuleRow, **fields: Any) -> Diagnosis:
    some: dict[str, Any] = {
        "reason": "20 updates in a row were skipped",
        "loss_scale": 65536.0,
        "settings": LossScaling().as_dict(),
        "history": [(0, 65536.0)],
        "counts": {"updates": 20, "skipped": 20, "consecutive": 20, "growths": 0, "backoffs": 0},
        "rows": rows,
        "losses": Losses(peak=1.0),
    }
    return Diagnosis(**some | fields)


def fp32_of(found: Diagnosis) -> str:
    return next((line.partition(": ")[2] for line in found.advice if "fp32_modules" in line), "")


LAYER = "model.layers.3"


def test_what_lies_between_two_modules_of_one_is_in_that_one() -> None:
    """Scores and softmax are neither v_proj's nor o_proj's."""
    found = diagnosis(
        row("lm_head", 0),
        row(LAYER, 1),
        row(f"{LAYER}.self_attn.o_proj", 2),
        row(f"{LAYER}.self_attn", 3),
        row(f"{LAYER}.self_attn.v_proj", 4, overflow=True),
        row(f"{LAYER}.self_attn.q_proj", 5, overflow=True),
    )
    assert found.suspects == [f"{LAYER}.self_attn.v_proj"]
    assert fp32_of(found) == f"fp16_patch.fp32_modules=[{LAYER}.self_attn]"


def test_layers_are_not_named_for_what_lies_between_them() -> None:
    found = diagnosis(
        row("model", 0), row("model.layers.4", 1), row("model.layers.4.norm", 2), row(LAYER, 3, overflow=True)
    )
    assert fp32_of(found) == f"fp16_patch.fp32_modules=[{LAYER},model.layers.4.norm]"


def test_a_module_in_fp32_already_is_not_named() -> None:
    found = diagnosis(row("lm_head", 0), row("model.norm", 1, overflow=True, dtype="float32"))
    assert fp32_of(found) == "fp16_patch.fp32_modules=[lm_head]"
    assert "65504" not in render(diagnosis(row("lm_head", 0, dtype="float32"))), "FP32 has no such limit"


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{LAYER}.mlp.up.base_layer",
        f"base_model.model.{LAYER}.mlp.up.lora_A.default",
        f"base_model.model.{LAYER}.mlp.up.lora_dropout.default",
        f"pretrained_model.{LAYER}.mlp.up",
    ],
)
def test_names_are_those_that_the_flag_takes(name: str) -> None:
    origin = row(name, 5, overflow=True, forward_overflow=0, activation_nonfinite=0.5)
    assert fp32_of(diagnosis(origin)) == f"fp16_patch.fp32_modules=[{LAYER}.mlp.up]"


NAMES = st.lists(
    st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,6}", fullmatch=True), min_size=1, max_size=4).map(".".join),
    min_size=1,
    max_size=3,
)
WORDS = st.lists(st.sampled_from(["0", "1.5", "true", "null", "Inf", "nan", "1e5", "a.1e5", "inf.x", "_", "0.null"]))


@given(NAMES | WORDS.filter(bool))
def test_hydra_reads_the_names_as_they_are(names: list[str]) -> None:
    (override,) = shlex.split(fp32_override(names))
    assert OverridesParser.create().parse_override(override).value() == names


def test_usual_names_need_no_quotes() -> None:
    assert fp32_override([f"{LAYER}.mlp", "lm_head"]) == f"fp16_patch.fp32_modules=[{LAYER}.mlp,lm_head]"


def test_the_overrides_are_known_to_the_settings() -> None:
    found = examined(model(), skipped=2, init_scale=2.0**20)
    key, _, value = found.advice[0].partition(": ")[2].partition("=")
    assert LossScaling.from_mapping({key.rpartition(".")[2]: float(value)}).init_scale == 32768.0


# The report.


def test_the_text_says_it_all() -> None:
    found = examined(model(head=40, embed=0.01), skipped=4)
    text = render(found)
    lines = text.splitlines()
    assert lines[0] == "fp16_patch overflow report: 4 updates in a row were skipped"
    assert f"found: {found.cause}" in lines
    assert "scale: 65536 -> 32768 after 1 -> 16384 after 2 -> 8192 after 3 -> 4096 after 4" in lines
    assert "4 updates, 4 skipped, 4 consecutive, 0 growths, 4 backoffs" in text
    assert f"torch {torch.__version__}" in text
    table = {line.split()[0]: line for line in lines if line.startswith(("head ", "mlp", "embed "))}
    assert list(table) == ["head", "mlp.down", "mlp", "mlp.up", "embed"], "backward order"
    assert table["head"].split() == ["head", "Linear", "float16", "0.004002", "-", "4096", "-"]
    assert table["mlp.down"].split() == ["mlp.down", "Linear", "float16", "0.0001", "-", "-", "100", "%", "<-", "first"]
    assert [line for line in lines if line.startswith("headroom: largest finite gradient ")]
    assert [line.strip() for line in lines if line.startswith("  ")][-3:] == [
        f"{number}. {line}" for number, line in enumerate(found.advice, 1)
    ]


def test_a_long_history_is_one_short_line() -> None:
    history = [(updates, 2.0 ** (24 - updates)) for updates in range(20)]
    line = next(line for line in render(diagnosis(history=history)).splitlines() if line.startswith("scale: "))
    assert line == (
        "scale: 16777216 -> 8388608 after 1 -> 4194304 after 2 -> (13 more) "
        "-> 256 after 16 -> 128 after 17 -> 64 after 18 -> 32 after 19"
    )


def test_scales_below_one_are_written_out() -> None:
    found = diagnosis(row("head", 0, overflow=True), loss_scale=1.0, settings=LossScaling(min_scale=2.0**-24).as_dict())
    assert "init_scale=0.125" in found.advice[0]


def test_a_large_model_s_table_is_short() -> None:
    rows = [row(f"layers.{at}", at, overflow=at >= 50) for at in range(100)]
    lines = [line for line in render(diagnosis(*rows)).splitlines() if line.startswith("layers.")]
    assert [line.split()[0] for line in lines] == [f"layers.{at}" for at in range(44, 44 + SHOWN)]
    assert [line.split()[0] for line in lines if "<- first" in line] == ["layers.50"]
    finite = render(diagnosis(*[row(f"layers.{at}", at) for at in range(100)]))
    lines = [line for line in finite.splitlines() if line.startswith("layers.")]
    assert [line.split()[0] for line in lines] == [f"layers.{at}" for at in range(99, 99 - SHOWN, -1)], "largest first"
    assert "(80 more modules in the JSON file)" in finite


def test_a_report_without_modules() -> None:
    assert "nothing overflows" in render(diagnosis())


CASES = {
    "forward": lambda: examined(model(embed=1e6)),
    "loss": lambda: examined(model(), lambda output: total(output) * math.nan),
    "backward": lambda: examined(model(head=40, embed=0.01)),
    "nothing": lambda: examined(model()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_document_is_json_without_inf_or_nan(case: str, tmp_path: Path) -> None:
    found = CASES[case]()
    assert found.case == case
    path = save(found, tmp_path / "reports")
    assert path == tmp_path / "reports" / "overflow_report.txt"
    assert path.read_text() == render(found) + "\n"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(path.with_suffix(".json").read_text(), parse_constant=refuse)
    assert read == as_document(found)
    assert (read["case"], read["suspects"], read["advice"]) == (found.case, found.suspects, found.advice)
    assert read["history"][-1] == [4, 4096.0]
    assert [ModuleRow(**fields) for fields in read["modules"]] == found.rows


def test_reports_are_replaced_and_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(diagnosis(row("head", 0)), tmp_path, "trace_of_update_2_actor")
    first = (tmp_path / "trace_of_update_2_actor.json").read_text()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            save(diagnosis(), tmp_path, "trace_of_update_2_actor")
    assert (tmp_path / "trace_of_update_2_actor.json").read_text() == first
    save(diagnosis(), tmp_path, "trace_of_update_2_actor")
    assert json.loads((tmp_path / "trace_of_update_2_actor.json").read_text())["modules"] == []


def test_the_history_and_the_counts_are_the_scaler_s() -> None:
    found = examined(model(), skipped=3, init_scale=1024, growth_interval=7)
    assert found.history == [(0, 1024.0), (1, 512.0), (2, 256.0), (3, 128.0)]
    assert found.counts == {"updates": 3, "skipped": 3, "consecutive": 3, "growths": 0, "backoffs": 3}
    assert found.settings["growth_interval"] == 7
    assert found.loss_scale == 128.0


def test_the_scaler_is_left_as_it_was_after_an_error() -> None:
    scaler = FsdpLossScaler(LossScaling(), device="cpu")

    def run() -> None:
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        diagnose(model(), scaler, run, "asked for")
    assert "scale" not in vars(scaler)


# Parameters.


def test_the_share_of_each_parameter_s_gradient() -> None:
    module = model()
    module.embed.weight.grad = torch.ones(WIDTH, WIDTH)
    module.embed.weight.grad[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    module.head.bias.grad = torch.zeros(4)
    assert parameter_overflow(module) == {"embed.weight": 3 / WIDTH**2}


def test_no_gradient_is_no_overflow() -> None:
    assert parameter_overflow(model()) == {}
