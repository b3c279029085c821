# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

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
