# SPDX-License-Identifier: Apache-2.0
"""``fp16_patch.overwrite=true`` on verl: dtypes that a script hard-codes are replaced and listed, and nothing else."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.entry import apply_flag

FP16, OVERWRITE = "+precision@_global_=fp16", "fp16_patch.overwrite=true"
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
HARD_CODED = {
    f"{ROLLOUT}.dtype=bfloat16": "float16",
    f"{ACTOR}.fsdp_config.dtype=bfloat16": "float16",
    f"{ACTOR}.fsdp_config.model_dtype=bf16": "fp32",
    f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype=bf16": "fp16",
    f"+{ACTOR}.fsdp_config.mixed_precision.reduce_dtype=torch.bfloat16": "fp32",
}


def test_hard_coded_dtypes_are_replaced_and_each_is_listed(compose) -> None:
    config = compose(FP16, OVERWRITE, *HARD_CODED)
    changes = {change.key: change for change in apply_flag(config)}
    for override, after in HARD_CODED.items():
        key, _, before = override.lstrip("+").partition("=")
        assert (changes[key].before, changes[key].after, changes[key].overwritten) == (before, after, True)
        assert OmegaConf.select(config, key) == after
    assert not changes["critic.fsdp.dtype"].overwritten, "verl's own value"
    listed = {change["key"] for change in config.fp16_patch.changes if change["overwritten"]}
    assert listed == {key.lstrip("+").partition("=")[0] for key in HARD_CODED}


def test_without_it_the_error_names_it(compose) -> None:
    with raises_code("setting-contradicts", OVERWRITE):
        apply_flag(compose(FP16, f"{ROLLOUT}.dtype=bfloat16"))


def test_megatron_s_dtype_too(compose) -> None:
    key = f"{ACTOR}.megatron.dtype"
    config = compose(FP16, OVERWRITE, "model_engine=megatron", f"{ACTOR}.strategy=megatron", f"{key}=bfloat16")
    assert key in {change.key for change in apply_flag(config) if change.overwritten}


@pytest.mark.parametrize(
    "override",
    [
        f"+{ROLLOUT}.engine_kwargs.vllm.dtype=bfloat16",
        f"+{ROLLOUT}.engine_kwargs.vllm.kv_cache_dtype=fp8",
        f"{ROLLOUT}.quantization=fp8",
        f"{ROLLOUT}.dtype=banana",
        f"+{ACTOR}.fsdp_config.mixed_precision=bf16",
        "critic.fsdp.use_no_sync_for_gradient_accumulation=True",
    ],
)
def test_what_is_no_dtype_that_the_flag_sets_is_still_refused(compose, override) -> None:
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(compose(FP16, OVERWRITE, "critic.strategy=fsdp", override))
    assert override.lstrip("+").partition("=")[0] in str(refused.value)
    assert "fp16_patch.overwrite" not in str(refused.value)


@pytest.mark.parametrize("value", ["2", "maybe", "null", "fp16"])
def test_another_value_of_it_is_one_error(compose, value) -> None:
    with raises_code("value-not-allowed", "fp16_patch.overwrite", "allowed: true, false"):
        apply_flag(compose(FP16, f"fp16_patch.overwrite={value}"))


def test_workers_get_the_setting_with_the_flag(compose) -> None:
    config = compose(FP16, OVERWRITE)
    apply_flag(config)
    assert json.loads(config.ray_kwargs.ray_init.runtime_env.env_vars.FP16_PATCH)["overwrite"] is True
