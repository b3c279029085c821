# SPDX-License-Identifier: Apache-2.0
"""Test the flag on verl's real configuration: it sets everything or nothing."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch.frameworks.verl.entry import PrecisionCallback, apply_flag

FP16 = "+precision@_global_=fp16"
ENGINES = ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp")
ROLLOUT = "actor_rollout_ref.rollout"


def value(config, key):
    return OmegaConf.select(config, key)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_fp16_reaches_every_role(compose, strategy):
    config = compose(FP16, f"actor_rollout_ref.actor.strategy={strategy}", f"critic.strategy={strategy}")
    apply_flag(config)
    for engine in ENGINES:
        assert value(config, f"{engine}.mixed_precision.param_dtype") == "fp16", engine
        assert value(config, f"{engine}.mixed_precision.reduce_dtype") == "fp32", engine
        assert value(config, f"{engine}.model_dtype") == "fp32", engine
    assert value(config, f"{ROLLOUT}.dtype") == "float16"


def test_reward_model_and_teacher_rollouts_follow(compose):
    reward = ("reward.reward_model.enable=True", "reward.reward_model.rollout.name=vllm")
    config = compose(FP16, *reward, "distillation.enabled=True")
    apply_flag(config)
    assert value(config, "reward.reward_model.rollout.dtype") == "float16"
    assert value(config, "distillation.teacher_models.teacher_model.inference.dtype") == "float16"


@pytest.mark.parametrize("train", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("rollout", ["fp16", "bf16", "fp32"])
def test_all_nine_combinations(compose, train, rollout):
    config = compose(f"+precision@_global_={train}", f"fp16_patch.rollout_dtype={rollout}")
    apply_flag(config)
    long = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
    assert value(config, "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype") == train
    assert value(config, f"{ROLLOUT}.dtype") == long[rollout]


def test_engine_configuration_that_verl_builds_from_it(compose):
    """Return what the workers get: verl's own dataclass, from the rewritten node."""
    from verl.utils.config import omega_conf_to_dataclass

    config = compose(FP16)
    apply_flag(config)
    engine = omega_conf_to_dataclass(config.actor_rollout_ref.actor.fsdp_config)
    assert engine.mixed_precision["param_dtype"] == "fp16"


def test_loss_scaling_settings_travel_to_every_process(compose):
    config = compose(FP16, "fp16_patch.loss_scaling.init_scale=1024", "fp16_patch.loss_scaling.growth_interval=7")
    apply_flag(config)
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    sent = json.loads(variables.FP16_PATCH)
    assert sent["loss_scaling"]["init_scale"] == 1024
    assert sent["loss_scaling"]["growth_interval"] == 7
    assert variables.VERL_USE_EXTERNAL_MODULES == "fp16_patch.frameworks.verl.worker"


def test_the_users_own_external_modules_are_kept(compose, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "my.plugin")
    config = compose(FP16)
    apply_flag(config)
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables.VERL_USE_EXTERNAL_MODULES == "my.plugin,fp16_patch.frameworks.verl.worker"


def test_an_explicit_setting_that_agrees_is_accepted(compose):
    config = compose(FP16, f"{ROLLOUT}.dtype=half", "actor_rollout_ref.actor.fsdp_config.dtype=float16")
    changed = {change.key for change in apply_flag(config)}
    assert f"{ROLLOUT}.dtype" not in changed


def test_a_second_pass_changes_nothing_more(compose):
    config = compose(FP16)
    apply_flag(config)
    rewritten = OmegaConf.to_container(config.actor_rollout_ref)
    config.fp16_patch = {"train_dtype": "fp16", "rollout_dtype": "fp16"}
    assert apply_flag(config) == []
    assert OmegaConf.to_container(config.actor_rollout_ref) == rewritten


def test_a_refused_configuration_is_left_as_it_was(compose):
    config = compose(FP16, f"{ROLLOUT}.dtype=bfloat16")
    before = OmegaConf.to_container(config, resolve=False)
    with raises_code("setting-contradicts"):
        apply_flag(config)
    assert OmegaConf.to_container(config, resolve=False) == before


def test_without_the_flag_hydra_composes_what_it_always_did(compose):
    config = compose()
    assert "fp16_patch" not in config
    assert config.hydra.callbacks == {}


def test_hydra_cannot_swallow_a_refusal(compose, capsys):
    """Hydra turns exceptions of callbacks into warnings and trains; it lets SystemExit through."""
    from hydra._internal.callbacks import Callbacks

    config = compose(FP16, f"{ROLLOUT}.dtype=bfloat16")
    with pytest.raises(SystemExit) as stopped:
        Callbacks(config).on_run_start(config=config)
    assert stopped.value.code == 2
    assert f"{ROLLOUT}.dtype=bfloat16 contradicts the flag" in capsys.readouterr().err


def test_a_crash_of_our_own_stops_the_run_too(compose, monkeypatch):
    monkeypatch.setattr("fp16_patch.frameworks.verl.entry.plan", lambda *_: 1 / 0)
    with pytest.raises(SystemExit):
        PrecisionCallback().on_run_start(compose(FP16))


def test_multirun_is_refused(compose, capsys):
    with pytest.raises(SystemExit):
        PrecisionCallback().on_multirun_start(compose(FP16))
    assert "multirun" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["+precision@_global_=fp16", "+precision=fp16", "+precision@elsewhere=fp16"])
def test_a_flag_whose_callback_never_runs_cannot_train(compose, spelling):
    """So does ``hydra.callbacks=null``. verl's task runner first resolves the whole configuration."""
    from omegaconf.errors import UnsupportedInterpolationType

    config = compose(spelling)
    OmegaConf.set_struct(config, False)
    del config["hydra"]  # as Hydra does before it calls main
    with pytest.raises(UnsupportedInterpolationType, match="fp16_patch_callback_did_not_run"):
        OmegaConf.to_container(config, resolve=True)


def test_once_applied_the_configuration_resolves(compose):
    config = compose(FP16, "hydra.runtime.output_dir=out", "hydra.job.num=0", "hydra.job.id=0")
    apply_flag(config)
    resolved = OmegaConf.to_container(config.fp16_patch, resolve=True)
    assert "applied" not in resolved
    assert resolved["train_dtype"] == "fp16"
