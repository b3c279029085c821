# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.lab.cpu import settings


@pytest.fixture(scope="module")
def config() -> Any:
    """verl's own configuration with the platform's overrides, composed by Hydra."""
    pytest.importorskip("verl")
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*settings.verl_overrides(ranks=2), "trainer.nnodes=3"])


def test_verl_knows_every_key(config: Any) -> None:
    assert config.trainer.device == "cpu"
    assert config.trainer.n_gpus_per_node == config.ray_kwargs.ray_init.num_gpus == 2
    assert config.critic.model.override_config.attn_implementation == "sdpa"


def test_nothing_is_left_to_compile(config: Any) -> None:
    for engine in (config.actor_rollout_ref.actor, config.actor_rollout_ref.ref):
        assert not engine.use_torch_compile
        assert not engine.fsdp_config.use_torch_compile
    assert not config.critic.fsdp.use_torch_compile


def test_verl_knows_every_key_of_megatron() -> None:
    pytest.importorskip("verl")
    from hydra import compose, initialize_config_module

    overrides = ["model_engine=megatron", *settings.verl_overrides(ranks=2, megatron=True)]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides)
    for engine in (config.actor_rollout_ref.actor, config.actor_rollout_ref.ref, config.critic):
        assert engine.strategy == "megatron"
        assert not engine.megatron.use_remove_padding
        assert engine.megatron.override_transformer_config.attention_backend == "local"


def test_ray_can_place_every_actor(config: Any) -> None:
    in_placement_group = 3 * 2  # verl reserves three CPUs a rank
    of_their_own = 8  # task runner, transfer queue, reward, agent loop, load balancer, servers
    assert config.ray_kwargs.ray_init.num_cpus >= in_placement_group + of_their_own


def test_an_override_that_comes_later_wins(config: Any) -> None:
    assert config.trainer.nnodes == 3


def test_rays_sockets_fit_however_deep_the_run_lies() -> None:
    deep = Path("/home/somebody") / "a-long-folder-name" / ("x" * 200)
    folder = settings.environment(deep)["RAY_TMPDIR"]
    socket = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
    assert len(folder + socket) < 107
    assert folder != settings.environment(deep / "other")["RAY_TMPDIR"], "two runs must not share Ray's files"


def test_openrlhf_knows_every_argument() -> None:
    source = Path(pytest.importorskip("openrlhf").__path__[0], "cli", "train_ppo_ray.py").read_text()
    for argument in settings.openrlhf_arguments(ranks=2):
        assert f'"{argument.partition("=")[0]}"' in source, f"OpenRLHF has no {argument}"


def test_ray_has_a_device_for_every_model_of_openrlhf() -> None:
    resources = json.loads(settings.openrlhf_environment(Path("run"), ranks=2)["RAY_OVERRIDE_RESOURCES"])
    models_and_engine = 4 * 2 + 1
    assert resources["GPU"] >= models_and_engine
    assert resources["CPU"] >= models_and_engine + 1, "the trainer takes a CPU and no device"


def test_the_environment_says_nothing_about_precision() -> None:
    for_verl = [
        (settings.environment(Path("run"), megatron=megatron), settings.verl_overrides(1, megatron=megatron))
        for megatron in (False, True)
    ]
    for_openrlhf = {**settings.openrlhf_environment(Path("run"), 1), "arguments": settings.openrlhf_arguments(1)}
    text = f"{for_verl} {for_openrlhf}".lower()
    assert not [word for word in ("dtype", "bf16", "float16", "precision") if word in text]
