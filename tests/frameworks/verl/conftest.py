# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import fp16_patch
from fp16_patch import envs
from fp16_patch.precision import Precision

Compose = Callable[..., DictConfig]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that says it is a Qwen2 model; composing reads no more of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return folder


@pytest.fixture
def compose(model: Path) -> Compose:
    """verl's own configuration, composed by Hydra with these overrides, as ``main_ppo`` would get it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    def composed(*overrides: str) -> DictConfig:
        usual = [
            "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.actor.strategy=fsdp2",
            f"actor_rollout_ref.model.path={model}",
        ]
        with initialize_config_module("verl.trainer.config", version_base=None):
            return hydra_compose("ppo_trainer", overrides=[*usual, *overrides], return_hydra_config=True)

    return composed


CASES = Path(__file__).with_name("engine_cases.py")
SUPPORT = Path(__file__).parents[2] / "support"
"""Where engine_ranks.py and engine_building.py are."""
SECONDS = 400
Outcomes = Callable[..., list[dict[str, Any]]]


def start(kind: str, folder: Path, modules: str, flag: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that runs the cases of ``kind``, with these modules for verl to import."""
    folder.mkdir()
    paths = [str(Path(fp16_patch.__file__).parents[1]), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    environment = {name: value for name, value in os.environ.items() if name != envs.PRECISION} | {
        "PYTHONPATH": os.pathsep.join(paths),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": modules,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "FP16_PATCH_REPORTS": str(folder / "reports"),
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, str(CASES), kind, str(folder)]
        return subprocess.Popen(
            command, env=environment | flag, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.fixture(scope="session")
def engine_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All cases, run once; the folder of their results."""
    folder, platform = tmp_path_factory.mktemp("engine"), "fp16_patch.lab.cpu.verl"
    worker, flag = "fp16_patch.frameworks.verl.worker", {envs.PRECISION: Precision().to_environment()}
    processes = [
        start("flag", folder / "flag", f"{platform},{worker}", flag),
        start("stock", folder / "stock", platform, {}),
    ]
    try:
        for process in processes:
            process.wait(timeout=SECONDS)
        yield folder
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its ranks too, should any be left
            process.wait()


@pytest.fixture
def outcomes(engine_runs: Path) -> Outcomes:
    """``outcomes(case, kind="flag")``: what each rank wrote, ``{"result": ...}`` or ``{"error": traceback}``."""

    def read(case: str, kind: str = "flag") -> list[dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in sorted((engine_runs / kind).glob(f"{case}.*.json"))]
        log = (engine_runs / kind / "log").read_text(errors="replace")
        assert found, f"the case {case} did not run:\n{log[-3000:]}"
        return found

    return read


@pytest.fixture
def results(outcomes: Outcomes) -> Outcomes:
    """``results(case, kind="flag")``: what each rank's run of the case returned."""

    def read(case: str, kind: str = "flag") -> list[dict[str, Any]]:
        found = outcomes(case, kind)
        for rank, outcome in enumerate(found):
            assert "error" not in outcome, f"rank {rank} of the case {case} failed:\n{outcome['error']}"
        return [outcome["result"] for outcome in found]

    return read
