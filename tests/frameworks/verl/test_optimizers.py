# SPDX-License-Identifier: Apache-2.0
"""Optimizers whose states are not FP32, and updates that verl cannot make, are refused before launch."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.entry import apply_flag

FP16, GAE = "+precision@_global_=fp16", "algorithm.adv_estimator=gae"
MEGATRON = ("model_engine=megatron", "actor_rollout_ref.actor.strategy=megatron")
ACTOR = "actor_rollout_ref.actor"
ROLES = (f"{ACTOR}.optim", "critic.optim")


def codes_and_text(compose, *overrides):
    config = compose(FP16, GAE, *overrides)
    before = OmegaConf.to_container(config, resolve=False)
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(config)
    assert OmegaConf.to_container(config, resolve=False) == before, "half applied"
    return refused.value.codes, str(refused.value)


@pytest.mark.parametrize("engine", [(), MEGATRON], ids=["fsdp", "megatron"])
def test_an_update_without_clipping(compose, engine):
    """FSDP asserts and Megatron compares None with 0, each after the first rollout."""
    codes, text = codes_and_text(compose, *engine, *(f"{optim}.clip_grad=null" for optim in ROLES))
    assert codes == ("setting-refused", "setting-refused")
    assert all(f"{optim}.clip_grad=null" in text for optim in ROLES)
    apply_flag(compose(FP16, *engine, "critic.optim.clip_grad=null", "algorithm.adv_estimator=grpo"))
    apply_flag(compose(FP16, *engine, f"{ACTOR}.optim.clip_grad=null", f"+{ACTOR}.optim.grad_clip=2.0"))


@pytest.mark.parametrize(
    ("module", "name"),
    [("bitsandbytes.optim", "AdamW8bit"), ("torchao.optim", "AdamW4bit"), ("torchao.optim", "AdamWFp8")],
)
def test_an_fsdp_optimizer_with_states_of_few_bits(compose, module, name):
    overrides = [f"{optim}.{key}" for optim in ROLES for key in (f"optimizer={name}", f"optimizer_impl={module}")]
    codes, text = codes_and_text(compose, *overrides)
    assert codes == ("setting-refused", "setting-refused")
    assert all(f"{optim}.optimizer={name}" in text for optim in ROLES)


def test_arguments_of_an_fsdp_optimizer(compose):
    key = f"{ACTOR}.optim.override_optimizer_config"
    given = {"state_dtype": "bf16", "exp_avg_dtype": "float16", "optim_bits": 8, "bf16_stochastic_round": True}
    codes, text = codes_and_text(compose, *(f"+{key}.{name}={value}" for name, value in given.items()))
    assert codes == ("setting-refused",) * len(given)
    assert all(f"{key}.{name}={value}" in text for name, value in given.items())


def test_optimizers_that_keep_fp32(compose):
    key = f"{ACTOR}.optim.override_optimizer_config"
    arguments = ("eps=1e-9", "optim_bits=32", "exp_avg_dtype=torch.float32", "bf16_stochastic_round=False")
    apply_flag(compose(FP16, *(f"+{key}.{argument}" for argument in arguments)))
    apply_flag(compose(FP16, f"{ACTOR}.optim.optimizer=_AdamW", f"{ACTOR}.optim.optimizer_impl=torchao.optim"))


def test_megatron_has_no_fp32(compose):
    config = compose("+precision@_global_=fp32", *MEGATRON)
    with raises_code("setting-refused", "fp16_patch.train_dtype=fp32", "model_engine=dp"):
        apply_flag(config)
    apply_flag(compose("+precision@_global_=bf16", "fp16_patch.rollout_dtype=fp32", *MEGATRON))
