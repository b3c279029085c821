# SPDX-License-Identifier: Apache-2.0
"""The platform in a process of OpenRLHF, on the real openrlhf, DeepSpeed, torch and vLLM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.engines.vllm import plugin

pytestmark = pytest.mark.skipif(
    not (find_spec("openrlhf") and find_spec("deepspeed") and find_spec("vllm")),
    reason="needs openrlhf, DeepSpeed and vLLM",
)

Python = Callable[..., "subprocess.CompletedProcess[str]"]
FACTS = Path(__file__).with_name("cpu_openrlhf_facts.py")
ACTIVATE = "from fp16_patch.engines.vllm import plugin\nplugin.activate()"
HEAVY = ("torch", "openrlhf", "deepspeed", "vllm", "ray", "transformers", "verl")


@pytest.fixture(scope="module")
def facts(python: Python, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    extensions = tmp_path_factory.mktemp("extensions")
    # Activated before torch is imported, as in every process of a run.
    code = f"{ACTIVATE}\nimport runpy\nrunpy.run_path({str(FACTS)!r}, run_name='__main__')"
    run = python("-c", code, FP16_PATCH_PLATFORM="cpu", TORCH_EXTENSIONS_DIR=str(extensions), TORCHDYNAMO_DISABLE="1")
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_every_patch_fits_what_is_installed(facts: dict[str, Any]) -> None:
    assert set(facts["ledger"].values()) == {"applied"}, facts["ledger"]


def test_torch_cuda_answers_for_the_cpu_and_claims_no_gpu(facts: dict[str, Any]) -> None:
    assert facts["torch_cuda"] == {
        "available": False,
        "device of a tensor": "cpu",
        "device with index": "cuda:0",
        "stream is done": True,
    }
    assert facts["half products"]


def test_nobody_else_finds_the_stand_in_for_flash_attention(facts: dict[str, Any]) -> None:
    assert facts["flash_attention"]["left behind"] == []
    assert not facts["flash_attention"]["found"]
    assert "--ds.ring_attn_size" in facts["flash_attention"]["said"]


def test_packed_answers_get_the_log_probs_of_padded_ones(facts: dict[str, Any]) -> None:
    assert facts["packing"] < 1e-5, "an answer attends to another one of its row"


def test_deepspeed_steps_in_fp16_and_compiles_nothing(facts: dict[str, Any]) -> None:
    assert facts["deepspeed_step"] == {
        "weights": "torch.float16",
        "moved": True,
        "optimizer": "torch.optim.adamw",
        "backend": "gloo",
        "a sum over the mesh": 1.0,
        "compiled": [],
    }


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16", "torch.float16"])
def test_a_packed_vllm_layer_takes_every_update(facts: dict[str, Any], dtype: str) -> None:
    assert facts["weight_update"][dtype] == [32.0, 16.0], "the layer still multiplies with earlier weights"


def test_weights_arrive_bit_for_bit(facts: dict[str, Any]) -> None:
    assert facts["bit_for_bit"]


def test_the_trainer_waits_for_no_receiver_so_that_it_can_hear_of_its_failure(facts: dict[str, Any]) -> None:
    assert facts["seconds_of_a_sender_without_a_receiver"] < 5
    assert facts["seconds_of_a_trainer_without_a_worker"] < 5


def test_the_moving_average_is_taken_on_the_cpu(facts: dict[str, Any]) -> None:
    assert facts["moving_average"] == 2.0


def test_activation_imports_no_framework(python: Python) -> None:
    code = f"{ACTIVATE}\nplugin.activate()\nimport os, sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    run = python("-c", f"{code}\nprint(os.environ['DS_ACCELERATOR'])", FP16_PATCH_PLATFORM="cpu")
    assert run.stdout.split() == ["[]", "cpu"], f"nothing imported, and the platform active: {run.stderr}"


def test_vllm_finds_the_plugin() -> None:
    (found,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "fp16_patch"]
    assert found.load() is plugin.activate, "install the package again: its entry points have changed"


def test_the_plugin_does_nothing_unless_it_is_asked_to(python: Python) -> None:
    code = (
        f"{ACTIVATE}\nimport torch\n"
        "print('fp16_patch' in torch.cuda.synchronize.__code__.co_filename,"
        " 'fp16_patch' in torch._C._dispatch_dump('aten::mm'))"
    )
    run = python("-c", code)
    assert run.stdout.split() == ["False", "False"], run.stderr


def test_an_unknown_platform_is_an_error(python: Python) -> None:
    run = python("-c", ACTIVATE, FP16_PATCH_PLATFORM="tpu")
    assert run.returncode != 0
    assert "FP16_PATCH_PLATFORM='tpu'" in run.stderr
    assert "allowed: cpu;" in run.stderr
