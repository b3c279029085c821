# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from raising import raises_code

from fp16_patch.engines.vllm import precision
from fp16_patch.lab.cpu import rounded_rollout
from fp16_patch.lab.cpu.rounded_rollout import RoundedLinear, activate, requested_bits, rounded, rounded_layers

Python = Callable[..., "subprocess.CompletedProcess[str]"]
FORMATS = {torch.float16: (10, -14), torch.bfloat16: (7, -126), torch.float32: (23, -126)}
"""dtype -> explicit bits of significand, exponent of the smallest normal number."""
BITS = range(1, 11)


def every_half() -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)


def values(dtype: torch.dtype) -> torch.Tensor:
    """Every number of a 16-bit dtype; of float32 those at and beside the ties, and a million random ones."""
    if dtype is not torch.float32:
        return every_half().view(dtype)
    raw = torch.randint(-(2**31), 2**31 - 1, (1_000_000,), generator=torch.Generator().manual_seed(0))
    ties = (raw[:1000, None] & -(2**23)) | (torch.arange(2**11) << 12)
    return torch.cat([raw, *(ties.flatten() + step for step in (-1, 0, 1))]).to(torch.int32).view(dtype)


def reference(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest multiple of the spacing at x, in float64, where every step is exact."""
    _, smallest = FORMATS[x.dtype]
    exponent = torch.frexp(x.double())[1].clamp(min=smallest + 1)
    spacing = torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent - 1 - bits)
    return torch.where(x.isfinite(), torch.round(x.double() / spacing) * spacing, x.double()).to(x.dtype)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_it_is_the_nearest_number_with_that_significand_ties_to_even(dtype: torch.dtype, bits: int) -> None:
    x = values(dtype)
    got = rounded(x, bits)
    wanted = reference(x, bits) if bits < FORMATS[dtype][0] else x
    assert got.dtype is dtype
    assert torch.equal(got.isnan(), x.isnan())
    same = (got == wanted) & (torch.signbit(got) == torch.signbit(wanted)) | x.isnan()
    assert same.all(), (x[~same][:5], got[~same][:5], wanted[~same][:5])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_rounding_twice_is_rounding_once(dtype: torch.dtype, bits: int) -> None:
    once = rounded(values(dtype), bits)
    assert torch.equal(rounded(once, bits).nan_to_num(7.0), once.nan_to_num(7.0))


def test_ten_bits_of_a_half_and_seven_of_a_bfloat16_are_all_there_are() -> None:
    half, bfloat = every_half(), every_half().view(torch.bfloat16)
    assert rounded(half, 10) is half
    assert rounded(bfloat, 7) is bfloat


def test_seven_bits_of_a_float32_are_torchs_own_bfloat16() -> None:
    x = values(torch.float32)
    assert torch.equal(rounded(x, 7).nan_to_num(7.0), x.bfloat16().float().nan_to_num(7.0))


@pytest.mark.parametrize("bits", [1, 9])
def test_the_range_stays_the_dtypes_own(bits: int) -> None:
    x = torch.tensor([65504.0, -65504.0, math.inf, -math.inf, -0.0], dtype=torch.float16)
    assert rounded(x, bits).tolist() == [math.inf, -math.inf, math.inf, -math.inf, 0.0], "65504 rounds to 2**16"
    assert torch.signbit(rounded(x, bits)[-1])


def test_a_tensor_of_any_layout_keeps_its_shape() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).half().transpose(0, 2)
    assert torch.equal(rounded(x, 4), rounded(x.contiguous(), 4))


@pytest.mark.parametrize("text", ["0", "11", "-3", "five", "5.0", " "])
def test_what_is_no_number_of_bits_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(rounded_rollout.VARIABLE, text)
    with raises_code("value-not-allowed", f"{rounded_rollout.VARIABLE}={text!r}", "1 to 10"):
        activate()


def test_nothing_is_patched_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[object] = []
    monkeypatch.setattr(rounded_rollout, "register_import_hooks", lambda plan: applied.extend(sum(plan.values(), ())))
    monkeypatch.setattr(precision, "_extra_rows", {})
    monkeypatch.delenv(rounded_rollout.VARIABLE, raising=False)
    activate()
    assert (requested_bits(), applied, precision._extra_rows) == (None, [], {})
    monkeypatch.setenv(rounded_rollout.VARIABLE, "5")
    activate()
    assert (requested_bits(), applied) == (5, list(rounded_rollout.PATCHES))
    assert precision._extra_rows == {"linear_outputs": rounded_layers}


def test_the_report_reads_it_off_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    monkeypatch.setattr(precision, "_extra_rows", {"linear_outputs": rounded_layers})
    runner = SimpleNamespace(model=model, model_config=SimpleNamespace(dtype=torch.float16))
    worker = SimpleNamespace(model_runner=runner)
    for layer in model:
        layer.cpu_linear = torch.nn.functional.linear
    assert "linear_outputs" not in precision.describe_worker(worker)
    model[1].cpu_linear = RoundedLinear(torch.nn.functional.linear, 5)
    assert precision.describe_worker(worker)["linear_outputs"] == "5 bits of significand in 1 of 2"


IN_A_WORKER = """
import torch
import verl  # activates the platform, as in every process of a run
from vllm.model_executor.layers import utils
from fp16_patch.patching import status
from fp16_patch.lab.cpu.rounded_rollout import rounded_layers, rounded

torch.manual_seed(0)
layer = torch.nn.Linear(64, 32, bias=False, dtype=torch.float16).requires_grad_(False)
x = torch.randn(4, 64, dtype=torch.float16)
for _ in ("as loaded", "after an update"):
    utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double())
    y = layer.cpu_linear(x, layer.weight, None)
    assert torch.equal(y, rounded(y, 3)), "more than 3 bits"
    error = ((y.double() - exact) / exact).abs().max().item()
    assert 0.03 < error <= 1.01 * 2**-4, error
    layer.weight.mul_(3)
assert rounded_layers(layer) == "3 bits of significand in 1 of 1"
print({entry.name: entry.outcome for entry in status().entries}["vllm-cpu-rounded-linears"])
"""


@pytest.mark.skipif(not (find_spec("verl") and find_spec("vllm")), reason="needs verl and vLLM")
def test_a_linear_layer_of_vllm_hands_on_that_many_bits_also_after_a_weight_update(python: Python) -> None:
    module = "fp16_patch.lab.cpu.verl"
    asked = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": module, rounded_rollout.VARIABLE: "3"}
    run = python("-c", IN_A_WORKER, **asked)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == "applied"
