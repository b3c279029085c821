# SPDX-License-Identifier: Apache-2.0
"""Test the flag on verl's real Megatron configuration: what it sets and what it refuses."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch.engines.megatron import config as configuration
from fp16_patch.engines.megatron import optimizer_choice
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config import megatron
from fp16_patch.frameworks.verl.entry import apply_flag

MEGATRON = ("+precision@_global_=fp16", "model_engine=megatron", "actor_rollout_ref.actor.strategy=megatron")
ACTOR, REFERENCE = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
OPTIMIZER = f"{ACTOR}.optim.override_optimizer_config"
DDP, TRANSFORMER = f"{ACTOR}.megatron.override_ddp_config", f"{ACTOR}.megatron.override_transformer_config"


def flagged(compose, *overrides):
    config = compose(*MEGATRON, *overrides)
    apply_flag(config)
    return config


def value(config, key):
    return OmegaConf.select(config, key)


def test_fp16_reaches_every_role(compose):
    config = flagged(compose, "algorithm.adv_estimator=gae")
    for section in (ACTOR, REFERENCE, "critic"):
        assert value(config, f"{section}.megatron.dtype") == "float16", section
    assert value(config, "actor_rollout_ref.rollout.dtype") == "float16"


def test_settings_of_the_loss_scale_reach_megatron_under_its_names(compose):
    ours = {"init_scale": 4096, "min_scale": 2, "growth_interval": 7, "hysteresis": 3}
    config = flagged(compose, *(f"fp16_patch.loss_scaling.{name}={number}" for name, number in ours.items()))
    for section in (f"{ACTOR}.optim", "critic.optim"):
        given = value(config, f"{section}.override_optimizer_config")
        assert {ours: given[theirs] for theirs, ours in configuration.SETTINGS.items()} == ours, section


def test_verl_builds_megatrons_settings_from_it(compose):
    """Return verl's own dataclasses, and Megatron's OptimizerConfig that verl makes from them."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.megatron.optimizer import init_megatron_optim_config

    config = flagged(compose, "fp16_patch.loss_scaling.init_scale=4096")
    built = init_megatron_optim_config(omega_conf_to_dataclass(value(config, f"{ACTOR}.optim")), fp16=True, bf16=False)
    assert (built.initial_loss_scale, built.loss_scale_window, built.hysteresis) == (4096, 400, 1)
    assert built.loss_scale is None, "a fixed scale would take the place of the dynamic one"
    assert not built.use_precision_aware_optimizer


def test_the_optimizer_of_transformer_engine_where_it_is_installed(compose, monkeypatch):
    assert value(flagged(compose), f"{OPTIMIZER}.use_precision_aware_optimizer") is False
    monkeypatch.setattr(optimizer_choice, "_transformer_engine", lambda: "2.9")
    assert value(flagged(compose), f"{OPTIMIZER}.use_precision_aware_optimizer") is True
    config = flagged(compose, f"+{OPTIMIZER}.use_precision_aware_optimizer=False")
    assert value(config, f"{OPTIMIZER}.use_precision_aware_optimizer") is False, "the user's own choice stands"


def test_the_router_of_a_moe_model_is_fp32(compose, model):
    key = "megatron.override_transformer_config.moe_router_dtype"
    assert value(flagged(compose), f"{ACTOR}.{key}") is None, "no router in a dense model"
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "num_experts": 8}))
    config = flagged(compose)
    assert [value(config, f"{section}.{key}") for section in (ACTOR, REFERENCE)] == ["fp32", "fp32"]
    with raises_code("setting-contradicts", "moe_router_dtype=fp64"):
        flagged(compose, f"+{ACTOR}.{key}=fp64")


def test_bf16_leaves_the_optimizer_alone(compose):
    config = compose("+precision@_global_=bf16", *MEGATRON[1:], f"{ACTOR}.optim.optimizer=muon")
    apply_flag(config)
    assert not value(config, OPTIMIZER)


REFUSED = {
    (f"{ACTOR}.megatron.dtype=float32",): f"{ACTOR}.megatron.dtype=float32",
    (f"{REFERENCE}.megatron.dtype=bfloat16",): f"{REFERENCE}.megatron.dtype=bfloat16",
    (f"{ACTOR}.optim.optimizer=muon",): f"{ACTOR}.optim.optimizer=muon",
    (f"{ACTOR}.optim.optimizer=sgd",): f"{ACTOR}.optim.optimizer=sgd",
    (f"{ACTOR}.megatron.use_distributed_optimizer=False",): "use_distributed_optimizer=False",
    (f"{ACTOR}.megatron.use_megatron_fsdp=True",): "use_megatron_fsdp=True",
    (f"{ACTOR}.megatron.vanilla_mbridge=True",): f"{ACTOR}.megatron.vanilla_mbridge=True",
    (f"{ACTOR}.megatron.qat.enable=True",): "qat.enable=True",
    (f"+{DDP}.check_for_nan_in_grad=True",): "check_for_nan_in_grad=True",
    (f"+{DDP}.grad_reduce_in_fp32=False",): "grad_reduce_in_fp32=False",
    (f"+{TRANSFORMER}.bf16=True",): f"{TRANSFORMER}.bf16=True",
    (f"+{TRANSFORMER}.fp8=hybrid",): f"{TRANSFORMER}.fp8=hybrid",
    (f"+{OPTIMIZER}.initial_loss_scale=1024",): f"{OPTIMIZER}.initial_loss_scale=1024",
    (f"+{OPTIMIZER}.loss_scale=1024",): f"{OPTIMIZER}.loss_scale=1024",
    (f"+{OPTIMIZER}.exp_avg_dtype=fp16",): f"{OPTIMIZER}.exp_avg_dtype=fp16",
    (f"+{OPTIMIZER}.optimizer_cpu_offload=True",): f"{OPTIMIZER}.optimizer_cpu_offload=True",
    (f"+{OPTIMIZER}.use_precision_aware_optimizer=True",): f"{OPTIMIZER}.use_precision_aware_optimizer=True",
    (f"+{OPTIMIZER}.optimizer=sgd",): f"{OPTIMIZER}.optimizer=sgd",
    (f"+{OPTIMIZER}.use_distributed_optimizer=False",): f"{OPTIMIZER}.use_distributed_optimizer=False",
    (f"+{OPTIMIZER}.fp16=False",): f"{OPTIMIZER}.fp16=False",
    (f"+{TRANSFORMER}.fp16=False",): f"{TRANSFORMER}.fp16=False",
    (f"+{DDP}.use_distributed_optimizer=False",): f"{DDP}.use_distributed_optimizer=False",
    (f"+{DDP}.use_megatron_fsdp=True",): f"{DDP}.use_megatron_fsdp=True",
    (f"+{DDP}.check_for_large_grads=True",): f"{DDP}.check_for_large_grads=True",
    (f"{ACTOR}.megatron.use_mbridge=False",): f"{ACTOR}.megatron.use_mbridge=False",
    (f"{ACTOR}.strategy=fsdp2",): f"{ACTOR}.strategy=fsdp2: there is {ACTOR}.megatron",
    ("actor_rollout_ref.rollout.checkpoint_engine.backend=delta_sharded",): "backend=delta_sharded",
    ("fp16_patch.fp32_modules=[lm_head]",): "fp16_patch.fp32_modules=lm_head",
    (f"~{ACTOR}.megatron",): f"{ACTOR}.megatron=unset",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=lambda overrides: overrides[-1])
def test_refused_with_one_clear_error(compose, overrides):
    config = compose(*MEGATRON, *overrides)
    before = OmegaConf.to_container(config, resolve=False)
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(config)
    assert REFUSED[overrides] in str(refused.value)
    assert "allowed:" in str(refused.value)
    assert "next step:" in str(refused.value)
    assert OmegaConf.to_container(config, resolve=False) == before, "half applied"


def test_a_value_that_follows_another_is_refused_once(compose):
    """The reference's value is the actor's; the user never wrote it."""
    with pytest.raises(Fp16PatchError) as refused:
        flagged(compose, f"{ACTOR}.megatron.vanilla_mbridge=True")
    assert len(refused.value.codes) == 1
    with pytest.raises(Fp16PatchError) as refused:
        flagged(compose, f"{ACTOR}.megatron.vanilla_mbridge=True", f"{REFERENCE}.megatron.vanilla_mbridge=True")
    assert len(refused.value.codes) == 2


FP16_ONLY = {
    f"+{TRANSFORMER}.moe_token_dispatcher_type=flex": f"{TRANSFORMER}.moe_token_dispatcher_type=flex",
    f"+{TRANSFORMER}.moe_enable_deepep=True": f"{TRANSFORMER}.moe_enable_deepep=True",
    f"+{TRANSFORMER}.moe_use_legacy_grouped_gemm=True": f"{TRANSFORMER}.moe_use_legacy_grouped_gemm=True",
    f"{ACTOR}.optim.use_precision_aware_optimizer=True": f"{ACTOR}.optim.use_precision_aware_optimizer=True",
}
STATES = {
    **{f"{ACTOR}.optim.{name}=bf16": f"{ACTOR}.optim.{name}=bf16" for name in megatron.STATES[1:]},
    **{f"+{OPTIMIZER}.{name}=bf16": f"{OPTIMIZER}.{name}=bf16" for name in megatron.STATES},
}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_has_bf16_only_and_states_that_are_not_fp32(compose, precision):
    config = compose(f"+precision@_global_={precision}", *MEGATRON[1:], *FP16_ONLY, *STATES)
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(config)
    expected = [*STATES.values(), *(FP16_ONLY.values() if precision == "fp16" else ())]
    assert [text for text in expected if text not in str(refused.value)] == []
    assert len(refused.value.codes) == len(expected)


def test_the_fused_loss_is_off_where_it_trains_mtp(compose):
    """Its backward casts the gradient to BF16; verl uses Megatron's loss for MTP only."""
    key, mtp = f"{TRANSFORMER}.cross_entropy_loss_fusion", "actor_rollout_ref.model.mtp.enable=True"
    assert value(flagged(compose), key) is None
    assert value(flagged(compose, f"+{key}=True"), key) is True, "nothing calls it"
    assert value(flagged(compose, mtp), key) is False
    with raises_code("setting-contradicts", f"{key}=True"):
        flagged(compose, mtp, f"+{key}=True")
    config = compose("+precision@_global_=bf16", *MEGATRON[1:], mtp, f"+{key}=True")
    apply_flag(config)
    assert value(config, key) is True


def test_the_gradient_of_megatrons_fused_loss_is_bf16():
    """When this fails, the rule above is not needed any more."""
    import torch
    from megatron.core.fusions.fused_cross_entropy import calculate_gradients

    softmax, one = torch.full((1, 1, 4), 0.25), torch.tensor([0])
    gradient = calculate_gradients(softmax, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.bool), one)
    assert gradient.dtype is torch.bfloat16


def test_what_says_no_more_than_the_flag_may_stand(compose):
    config = flagged(
        compose,
        f"+{OPTIMIZER}.fp16=True",
        f"+{OPTIMIZER}.bf16=False",
        f"+{OPTIMIZER}.optimizer=adam",
        f"+{OPTIMIZER}.optimizer_cpu_offload=False",
        f"+{TRANSFORMER}.bf16=False",
        f"+{DDP}.use_megatron_fsdp=False",
    )
    assert (value(config, f"{OPTIMIZER}.optimizer"), value(config, f"{TRANSFORMER}.bf16")) == ("adam", False)


@pytest.mark.parametrize("section", [OPTIMIZER, TRANSFORMER])
def test_in_bf16_megatron_s_switches_of_a_dtype_say_bf16(compose, section):
    in_bf16 = ("+precision@_global_=bf16", *MEGATRON[1:])
    apply_flag(compose(*in_bf16, f"+{section}.fp16=False", f"+{section}.bf16=True"))
    for refused in (f"{section}.fp16=True", f"{section}.bf16=False"):
        with raises_code("setting-refused", refused):
            apply_flag(compose(*in_bf16, f"+{refused}"))


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_a_checkpoint_of_fsdp_is_refused_before_anything_starts(compose, tmp_path, mode):
    step = tmp_path / "global_step_3"
    (step / "actor").mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    places = {
        "auto": f"trainer.default_local_dir={tmp_path}",
        "resume_path": f"trainer.resume_from_path={step}",
    }
    overrides = (f"trainer.resume_mode={mode}", places[mode])
    flagged(compose, *overrides)
    (step / "actor" / "loss_scaler.json").write_text("{}")
    with raises_code("checkpoint-unusable", "global_step_3/actor/loss_scaler.json"):
        flagged(compose, *overrides)


def test_a_critic_that_the_run_has_not_is_not_looked_at(compose):
    flagged(compose, "critic.optim.optimizer=muon", "algorithm.adv_estimator=grpo")
    with raises_code("setting-refused", "critic.optim.optimizer=muon"):
        flagged(compose, "critic.optim.optimizer=muon", "algorithm.adv_estimator=gae")


def test_an_fsdp_run_is_not_asked_about_megatron(compose):
    config = compose("+precision@_global_=fp16", "fp16_patch.fp32_modules=[lm_head]")
    apply_flag(config)
    changes = OmegaConf.to_container(config.fp16_patch.changes)
    assert changes
    assert "megatron" not in json.dumps(changes)
