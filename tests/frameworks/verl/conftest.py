# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from run_cases import read_outcomes, read_results, start_cases

from fp16_patch import envs
from fp16_patch.precision import Precision

Compose = Callable[..., DictConfig]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder with the ``config.json`` of a Qwen2 model; composing reads nothing else."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return folder


@pytest.fixture
def compose(model: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """Compose verl's own configuration with these overrides, as ``main_ppo`` gets it."""
    monkeypatch.setenv("RAY_ADDRESS", "local")  # whatever cluster this machine has
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
SECONDS = 400
Outcomes = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def engine_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run all cases once, with the flag and without. Return the folder of their results."""
    folder, platform = tmp_path_factory.mktemp("engine"), {"VERL_PLATFORM": "cpu"}
    modules = "fp16_patch.lab.cpu.verl"
    environments = {
        "flag": {
            "VERL_USE_EXTERNAL_MODULES": f"{modules},fp16_patch.frameworks.verl.worker",
            envs.PRECISION: Precision().to_environment(),
        },
        "stock": {"VERL_USE_EXTERNAL_MODULES": modules},
    }
    with ExitStack() as stack:
        processes = [
            stack.enter_context(start_cases(CASES, folder / kind, platform | environment, kind))
            for kind, environment in environments.items()
        ]
        for process in processes:
            process.wait(timeout=SECONDS)
        yield folder


@pytest.fixture
def outcomes(engine_runs: Path) -> Outcomes:
    """``outcomes(case, kind="flag")``: what each rank wrote, ``{"result": ...}`` or ``{"error": traceback}``."""
    return lambda case, kind="flag": read_outcomes(engine_runs / kind, case)


@pytest.fixture
def results(engine_runs: Path) -> Outcomes:
    """``results(case, kind="flag")``: what each rank's run of the case returned."""
    return lambda case, kind="flag": read_results(engine_runs / kind, case)
