# SPDX-License-Identifier: Apache-2.0
"""One set of rules for every vLLM of a run: of the policy, the reward model and the teachers."""

from __future__ import annotations

import json
import logging

import pytest
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch.engines.vllm.dtype_arguments import argument_names
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.entry import apply_flag

FP16 = "+precision@_global_=fp16"
TEACHERS = "distillation.teacher_models"
TWO_TEACHERS = (
    "distillation.enabled=True",
    *(f"+{TEACHERS}.{name}.{key}={value}" for name in ("first", "second") for key, value in {
        "key": name, "model_path": "a/model", "inference.name": "vllm"}.items()),
)  # fmt: skip
ENGINES = {
    "actor_rollout_ref.rollout": (),
    "reward.reward_model.rollout": ("reward.reward_model.enable=True", "reward.reward_model.rollout.name=vllm"),
    f"{TEACHERS}.teacher_model.inference": ("distillation.enabled=True",),
    f"{TEACHERS}.second.inference": TWO_TEACHERS,
}
DTYPES = [f"engine_kwargs.vllm.{name}=bfloat16" for name in sorted(argument_names()) if name.endswith("dtype")]
REFUSED = [
    "name=sglang",
    "dtype=float32",
    "quantization=fp8",
    "qat.enable=True",
    "data_parallel_size=2",
    "disaggregation.enabled=True",
    "engine_kwargs.vllm.kv-cache-dtype=fp8",
    "engine_kwargs.vllm.quantization=fp8",
    "engine_kwargs.vllm.data-parallel-size=2",
    "engine_kwargs.vllm.worker_extension_cls=mine.Extension",
    "engine_kwargs.vllm.hf_overrides.torch_dtype=bfloat16",
    "engine_kwargs.vllm.config=serve.yaml",
    *DTYPES,
]

engines = pytest.mark.parametrize("section", ENGINES)


@engines
def test_refused_for_every_engine(compose, section):
    config = compose(FP16, *ENGINES[section], *(f"++{section}.{setting}" for setting in REFUSED))
    before = OmegaConf.to_container(config, resolve=False)
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(config)
    assert set(refused.value.codes) == {"setting-refused", "setting-contradicts"}
    assert [setting for setting in REFUSED if f"- {section}.{setting}" not in str(refused.value)] == []
    assert len(refused.value.codes) == len(REFUSED)
    assert OmegaConf.to_container(config, resolve=False) == before, "half applied"


@engines
def test_arguments_that_are_not_a_mapping(compose, section):
    with raises_code("setting-refused", f"{section}.engine_kwargs.vllm=foo"):
        apply_flag(compose(FP16, *ENGINES[section], f"++{section}.engine_kwargs.vllm=foo"))


@engines
def test_the_flags_own_values_may_stand(compose, section):
    agree = ("dtype=half", "quantization=null", "data_parallel_size=1", "engine_kwargs.vllm.lora_dtype=float16")
    config = compose(FP16, *ENGINES[section], *(f"++{section}.{setting}" for setting in agree))
    assert f"{section}.dtype" not in {change.key for change in apply_flag(config)}


def test_engines_that_the_run_does_not_start_are_not_looked_at(compose):
    for section in ("reward.reward_model.rollout", f"{TEACHERS}.teacher_model.inference"):
        apply_flag(
            compose(FP16, f"{section}.quantization=fp8" if "reward" in section else f"++{section}.dtype=float32")
        )
    # verl drops its own entry where there are others.
    apply_flag(compose(FP16, *TWO_TEACHERS, f"{TEACHERS}.teacher_model.inference.dtype=float32"))


def test_teachers_that_the_user_adds_get_the_dtype(compose):
    """verl's default is in its dataclass then, and not in the configuration."""
    from verl.utils.config import omega_conf_to_dataclass

    pool = ("distillation.n_gpus_per_node=2", "distillation.nnodes=1")
    each = [
        f"+{TEACHERS}.{name}.{setting}"
        for name in ("first", "second")
        for setting in ("num_replicas=1", "inference.tensor_model_parallel_size=1")
    ]
    config = compose(FP16, *TWO_TEACHERS, *pool, *each)
    apply_flag(config)
    built = omega_conf_to_dataclass(config.distillation)
    assert {key: teacher.inference.dtype for key, teacher in built.teacher_models.items()} == {
        "first": "float16",
        "second": "float16",
    }


def test_what_is_unset_is_called_unset(compose):
    config = compose(FP16, "distillation.enabled=True", f"+{TEACHERS}.first.key=a", f"+{TEACHERS}.first.model_path=m")
    with raises_code(
        "setting-refused", f"{TEACHERS}.first.inference.name=unset", f"{TEACHERS}.first.inference.name=vllm"
    ):
        apply_flag(config)
    with raises_code("setting-refused", "fsdp_config=unset"):
        apply_flag(compose(FP16, "~actor_rollout_ref.actor.fsdp_config"))


@pytest.mark.parametrize("section", [section for section in ENGINES if "rollout_ref" not in section])
def test_a_model_type_that_vllm_refuses_in_float16(compose, section, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    key = f"{section.rpartition('.')[0]}.model_path"
    with raises_code("setting-refused", key, "gemma2"):
        apply_flag(compose(FP16, *ENGINES[section], f"++{key}={tmp_path}"))


def test_verls_former_section_of_a_reward_model(compose):
    with raises_code("setting-refused", "reward_model.enable=True", "reward.reward_model"):
        apply_flag(compose(FP16, "reward_model.enable=True", "reward_model.rollout.dtype=bfloat16"))


def test_a_model_that_may_overflow_in_fp16_is_warned_about(compose, model, caplog):
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": {"depth": 24}}))
    for precision, warned in (("fp16", True), ("bf16", False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fp16_patch"):
            apply_flag(compose(f"+precision@_global_={precision}"))
        assert ("visual.blocks.23 may overflow in FP16" in caplog.text) == warned


def test_a_model_that_vllm_computes_otherwise_in_fp16_is_refused(compose, model):
    (model / "config.json").write_text(json.dumps({"model_type": "glm4_moe", "routed_scaling_factor": 2.5}))
    with raises_code("setting-refused", "actor_rollout_ref.model.path", "2.5", "bf16"):
        apply_flag(compose(FP16))
    apply_flag(compose("+precision@_global_=bf16"))
