# SPDX-License-Identifier: Apache-2.0
"""Where an overflow began and what to try, on real overflows of small models."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from diagnosed_models import AT_FLOOR, BF16, ONES, WIDTH, Model, Module, examined, model, said, total

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.fp32_modules import compute_in_fp32, find_fp32_modules
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.diagnosis.advice import TRAINER_ONLY
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleTrace
from fp16_patch.loss_scaling.diagnosis.observations import Losses, observe
from fp16_patch.loss_scaling.diagnosis.report import render


def test_an_activation_overflows() -> None:
    found = examined(model(embed=1e6))
    assert (found.case, found.suspects) == ("forward", ["embed"])
    assert "100 % of the output of embed (Linear) is inf or NaN, and its inputs are finite" in found.summary
    assert "no loss scale helps: activations are not scaled" in found.advice
    assert "keep embed in FP32: fp16_patch.fp32_modules=[embed]" in found.advice
    assert TRAINER_ONLY in found.advice
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
    (fp32_module,) = find_fp32_modules(broken, found.suspects)
    compute_in_fp32(fp32_module, "cpu")
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
    assert "not in FP16" in found.summary
    assert BF16 not in found.advice


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, AT_FLOOR])
def test_the_loss_is_not_finite(bad: float, settings: dict[str, float]) -> None:
    found = examined(model(), lambda output: total(output) * bad, **settings)
    assert (found.case, found.suspects) == ("loss", [])
    assert found.losses == Losses(peak=None, nonfinite=True, scaled_nonfinite=True)
    assert "the loss itself is inf or NaN" in found.summary
    assert "advantages, rewards, log-probs" in found.advice[0]
    assert "precision is not the cause" in found.advice[1]
    assert not [line for line in found.advice if "=" in line], "there is nothing to override"


def test_a_loss_that_the_model_computes_is_not_finite() -> None:
    class WithLoss(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).float().sum() * math.nan

    found = examined(WithLoss())
    assert (found.case, found.suspects) == ("loss", [])
    assert "the loss itself" in found.summary


def test_the_scaled_loss_overflows() -> None:
    found = examined(model(), lambda output: total(output).half() * 1000, skipped=0)
    assert found.case == "loss"
    assert found.losses.scaled_nonfinite
    assert not found.losses.nonfinite
    assert "overflows when it is multiplied by the scale" in found.summary
    assert found.advice[0] == "start 3 bits lower: fp16_patch.loss_scaling.init_scale=8192"


def test_the_loss_s_gradient_overflows() -> None:
    found = examined(model(), skipped=2, init_scale=2.0**20, x=ONES[:1])
    assert (found.case, found.suspects) == ("loss", ["head"])
    assert "with respect to the output of head" in found.summary
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
    assert "at loss scale 4096" in found.summary
    assert "the one before it, of head, is finite" in found.summary
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
    assert found.advice[0].startswith("the loss scale is at min_scale=1 already")
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
    assert "the gradients of parameters are not: 0.weight (100 %)" in found.summary
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
    assert "nothing overflows in this batch at loss scale 4096" in found.summary
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
    assert "the inf or NaN in the output of side reaches no gradient" in found.summary


def test_the_history_and_the_counts_are_the_scaler_s() -> None:
    found = examined(model(), skipped=3, init_scale=1024, growth_interval=7)
    assert found.history == [(0, 1024.0), (1, 512.0), (2, 256.0), (3, 128.0)]
    counts = {"updates": 3, "skipped": 3, "consecutive": 3, "growths": 0, "backoffs": 3, "losses_not_finite": 0}
    assert found.counts == counts
    assert found.settings["growth_interval"] == 7
    assert found.loss_scale == 128.0


def test_the_share_of_each_parameter_s_gradient() -> None:
    module = model()
    with ModuleTrace(module) as trace:
        module.embed.weight.grad = torch.ones(WIDTH, WIDTH)
        module.embed.weight.grad[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
        module.head.bias.grad = torch.zeros(4)
    counts = {name: (extremes.bad, extremes.elements) for name, extremes in trace.gradients().items()}
    assert counts.pop("embed.weight") == (3, WIDTH**2)
    assert set(counts) == {"embed.bias", "mlp.up.weight", "mlp.down.weight", "head.weight", "head.bias"}
    assert {bad for bad, _ in counts.values()} == {0}


def test_the_scaler_is_left_as_it_was_after_an_error() -> None:
    scaler = FsdpLossScaler(LossScaling(), device="cpu")

    def run() -> None:
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        observe(partial(ModuleTrace, model()), scaler, run, "asked for")
    assert "scale" not in vars(scaler)
