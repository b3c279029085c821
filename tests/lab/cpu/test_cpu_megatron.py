# SPDX-License-Identifier: Apache-2.0
"""The platform in a process of verl with Megatron. Its engine is in tests/frameworks/verl_megatron."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not (find_spec("verl") and find_spec("megatron")), reason="needs verl, megatron-core and megatron-bridge"
)

Python = Callable[..., "subprocess.CompletedProcess[str]"]
FACTS = Path(__file__).with_name("cpu_megatron_facts.py")
VERL = "fp16_patch.lab.cpu.verl"
MEGATRON = f"{VERL},fp16_patch.lab.cpu.megatron"
ENGINE = "import verl.workers.engine as engines; print(engines.MegatronEngine)"


@pytest.fixture(scope="module")
def facts(python: Python) -> dict[str, Any]:
    run = python(str(FACTS), VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES=MEGATRON)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_every_patch_fits_what_is_installed(facts: dict[str, Any]) -> None:
    outcomes = {outcome.partition(" ")[0] for outcome in facts["ledger"].values()}  # a note about a subclass may follow
    assert outcomes == {"applied"}, facts["ledger"]


def test_nobody_else_finds_the_stand_in_for_transformer_engine(facts: dict[str, Any]) -> None:
    said = facts["transformer_engine"].pop("said")
    assert facts["transformer_engine"] == {"left behind": [], "found": False, "torch's Adam": True}
    assert "needs TransformerEngine, which has no CPU build" in said


def test_streams_and_events_are_done(facts: dict[str, Any]) -> None:
    assert facts["streams"] == {"a class": True, "done": True}


def test_megatrons_random_states_are_of_the_generator_that_draws(facts: dict[str, Any]) -> None:
    assert facts["random_states"] == {"its own": True, "put back": True}


def test_cuda_means_cpu_in_the_thread_of_an_engine_and_nowhere_else(facts: dict[str, Any]) -> None:
    assert facts["cuda"]["before"] == facts["cuda"]["elsewhere"] == ["error"] * 4
    assert facts["cuda"]["after"] == ["cpu"] * 4
    assert facts["cuda"]["types"] == ["torch.HalfTensor", "torch.cuda.HalfTensor"]
    assert not facts["cuda"]["available"]


def test_routers_compute_in_the_dtype_they_are_told(facts: dict[str, Any]) -> None:
    assert facts["router"] == {"exact": True, "logits": "torch.float32", "gradients": ["torch.float16"]}


def test_verl_does_not_import_megatron_where_no_run_asked_for_it(python: Python) -> None:
    run = python("-c", ENGINE, VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES=VERL)
    assert run.stdout.splitlines()[-1] == "None", run.stderr[-3000:]
    assert "Megatron needs fp16_patch.lab.cpu.megatron in VERL_USE_EXTERNAL_MODULES" in run.stderr


@pytest.mark.parametrize("name", ["megatron-core", "megatron-bridge"])
def test_another_release_is_an_error(python: Python, tmp_path: Path, name: str) -> None:
    metadata = tmp_path / f"{name.replace('-', '_')}-0.99.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.99.0\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = "import verl, megatron.core\nimport megatron.bridge"
    run = python("-c", code, VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES=MEGATRON, PYTHONPATH=paths)
    assert run.returncode != 0
    assert f"of {name} 0.99.0" in run.stderr
    assert f"allowed: {name} ==0." in run.stderr
