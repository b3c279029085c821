# SPDX-License-Identifier: Apache-2.0
"""Every setting the flag cannot honour is one clear error before launch."""

from __future__ import annotations

import importlib.util
import json

import pytest
from raising import check_error, raises_code

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.entry import apply_flag

FP16 = "+precision@_global_=fp16"
ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
NO_SYNC = "use_no_sync_for_gradient_accumulation"

REFUSED = {
    # overrides -> the key the message must name
    (f"{ACTOR}.fsdp_config.model_dtype=fp16",): f"{ACTOR}.fsdp_config.model_dtype=fp16",
    ("critic.fsdp.model_dtype=bf16",): "critic.fsdp.model_dtype=bf16",
    (f"{ACTOR}.fsdp_config.dtype=banana",): f"{ACTOR}.fsdp_config.dtype=banana",
    (f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype=bf16",): "mixed_precision.param_dtype=bf16",
    (f"+{ACTOR}.fsdp_config.mixed_precision.reduce_dtype=bf16",): "mixed_precision.reduce_dtype=bf16",
    (f"{ACTOR}.strategy=fsdp", f"{ACTOR}.fsdp_config.{NO_SYNC}=True"): f"{ACTOR}.fsdp_config.{NO_SYNC}=True",
    ("critic.strategy=fsdp", f"critic.fsdp.{NO_SYNC}=True"): f"critic.fsdp.{NO_SYNC}=True",
    (f"{ROLLOUT}.dtype=bfloat16",): f"{ROLLOUT}.dtype=bfloat16",
    (f"{ROLLOUT}.checkpoint_engine.backend=delta_sharded",): "backend=delta_sharded",
    (f"{ROLLOUT}.checkpoint_engine.backend=kimi_ckpt_engine",): "backend=kimi_ckpt_engine",
    (f"{ROLLOUT}.checkpoint_engine.backend=mooncake",): "backend=mooncake",
    (f"{ROLLOUT}.name=sglang",): f"{ROLLOUT}.name=sglang",
    (f"{ROLLOUT}.quantization=fp8",): f"{ROLLOUT}.quantization=fp8",
    (f"+{ROLLOUT}.engine_kwargs.vllm.kv_cache_dtype=fp8",): "engine_kwargs.vllm.kv_cache_dtype=fp8",
    (f"+{ROLLOUT}.engine_kwargs.vllm.dtype=bfloat16",): "engine_kwargs.vllm.dtype=bfloat16",
    (f"{ROLLOUT}.data_parallel_size=2",): "data_parallel_size=2",
    (f"{ACTOR}.strategy=fsdp_turbo",): f"{ACTOR}.strategy=fsdp_turbo",
    ("model_engine=veomni",): f"{ACTOR}.strategy=veomni",
    ("model_engine=torchtitan",): f"{ACTOR}.strategy=torchtitan",
    (f"{ACTOR}.strategy=megatron",): f"{ACTOR}.strategy=megatron: there is {ACTOR}.fsdp_config",
    ("algorithm.adv_estimator=gae", "critic.strategy=automodel"): "critic.strategy=automodel",
    (f"+{ACTOR}.fsdp_config.mixed_precision=bf16",): "mixed_precision.param_dtype=bf16",
    (f"+{ACTOR}.fsdp_config.mixed_precision=null",): "mixed_precision.param_dtype=None",
    (f"+{ACTOR}.fsdp_config.mixed_precision={{param_dtype:bf16}}",): "mixed_precision.param_dtype=bf16",
    ("actor_rollout_ref.ref.fsdp_config={dtype:bfloat16}",): "actor_rollout_ref.ref.fsdp_config.dtype=bfloat16",
    (f"{ACTOR}.fsdp_config=null",): f"{ACTOR}.fsdp_config=None",
    (f"~{ACTOR}.fsdp_config",): f"{ACTOR}.fsdp_config=unset",
    (f"+{ROLLOUT}.engine_kwargs.vllm.kv-cache-dtype=bfloat16",): "engine_kwargs.vllm.kv-cache-dtype=bfloat16",
    (f"+{ROLLOUT}.engine_kwargs.vllm.hf_overrides={{torch_dtype:bfloat16}}",): "engine_kwargs.vllm.hf_overrides",
    (f"++{ROLLOUT}.engine_kwargs.vllm=foo",): "engine_kwargs.vllm=foo",
    ("fp16_patch.loss_scaling=null",): "fp16_patch.loss_scaling=null",
    ("trainer.v1.trainer_mode=separate_async",): "trainer.v1.trainer_mode=separate_async",
    ("+fp16_patch.loss_scaling.init_scal=4",): "fp16_patch.loss_scaling.init_scal=4",
    ("fp16_patch.loss_scaling.init_scale=1000",): "fp16_patch.loss_scaling.init_scale=1000",
    ("fp16_patch.loss_scaling.growth_interval=0",): "fp16_patch.loss_scaling.growth_interval=0",
    ("fp16_patch.loss_scaling.init_scale=0",): "fp16_patch.loss_scaling.init_scale=0",
    ("fp16_patch.loss_scaling.init_scale=-2",): "fp16_patch.loss_scaling.init_scale=-2",
    ("fp16_patch.loss_scaling.init_scale=nan",): "fp16_patch.loss_scaling.init_scale=nan",
    ("fp16_patch.loss_scaling.init_scale=inf",): "fp16_patch.loss_scaling.init_scale=inf",
    ("fp16_patch.loss_scaling.growth_factor=1",): "fp16_patch.loss_scaling.growth_factor=1",
    ("fp16_patch.loss_scaling.max_scale=0.5",): "fp16_patch.loss_scaling.min_scale=1",
    ("fp16_patch.loss_scaling.max_scale=1024",): "fp16_patch.loss_scaling.init_scale=65536",
    ("fp16_patch.loss_scaling.hysteresis=0",): "fp16_patch.loss_scaling.hysteresis=0",
    ("fp16_patch.loss_scaling.max_consecutive_skips=0.5",): "fp16_patch.loss_scaling.max_consecutive_skips=0.5",
    ("fp16_patch.fp32_modules=7",): "fp16_patch.fp32_modules=7",
    ("fp16_patch.trace_update=0",): "fp16_patch.trace_update=0",
    ("fp16_patch.train_dtype=bf16", "fp16_patch.trace_update=2"): "fp16_patch.trace_update=2",
    ("fp16_patch.trace_rollout=0",): "fp16_patch.trace_rollout=0",
    ("fp16_patch.trace_rollout=2",): f"{ROLLOUT}.enforce_eager=False",
    ("fp16_patch.keep_log_probs=2",): "fp16_patch.keep_log_probs=2",
    ("fp16_patch.keep_log_probs=true", "actor_rollout_ref.rollout.calculate_log_probs=false"): (
        "actor_rollout_ref.rollout.calculate_log_probs=False"
    ),
    ("fp16_patch.rollout_overflow=mask", "actor_rollout_ref.rollout.calculate_log_probs=false"): (
        "actor_rollout_ref.rollout.calculate_log_probs=False"
    ),
    ("fp16_patch.rollout_overflow=ignore",): "fp16_patch.rollout_overflow='ignore'",
    (
        "fp16_patch.keep_log_probs=true",
        "algorithm.rollout_correction.bypass_mode=true",
        "actor_rollout_ref.rollout.calculate_log_probs=true",
    ): "algorithm.rollout_correction.bypass_mode=True",
    ("fp16_patch.rollout_dtype=fp61",): "fp16_patch.rollout_dtype='fp61'",
    ("+fp16_patch.train=fp16",): "fp16_patch.train='fp16'",
}


def test_a_strategy_that_model_engine_chose_is_left_by_model_engine(compose):
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(compose("+precision@_global_=fp16", "model_engine=veomni"))
    assert "start with model_engine=dp" in str(refused.value)


@pytest.mark.parametrize("overrides", REFUSED, ids=lambda overrides: overrides[-1])
def test_refused_with_one_clear_error(compose, overrides):
    engine = any(o.startswith("model_engine=") for o in overrides)
    if engine:  # another model_engine brings its own strategy
        overrides = (*overrides, f"{ACTOR}.strategy={overrides[0].partition('=')[2]}")
    config = compose(FP16, *overrides)
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(config)
    message = str(refused.value)
    assert REFUSED[overrides[:1] if engine else overrides] in message
    assert "allowed:" in message
    assert "next step:" in message


def test_the_legacy_trainer_is_no_matter(compose):
    config = compose(FP16, "trainer.use_v1=False")
    apply_flag(config)
    assert config.trainer.use_v1 is False


def test_fsdp2_may_defer_its_gradient_sync(compose):
    key = f"{ACTOR}.fsdp_config.{NO_SYNC}"  # it accumulates in FP32
    config = compose(FP16, f"{key}=True")
    apply_flag(config)
    assert config.actor_rollout_ref.actor.fsdp_config[NO_SYNC] is True


@pytest.mark.parametrize("role", ["actor", "critic"])
@pytest.mark.parametrize("named", [True, False], ids=["resume_path", "auto"])
def test_a_damaged_file_of_the_scaler_to_resume_from(compose, tmp_path, role, named):
    """The ranks would find it when vLLM is up."""
    checkpoints = tmp_path / "checkpoints"
    for step, text in ((1, "{"), (2, json.dumps({"format": "another"}))):
        (checkpoints / f"global_step_{step}" / role).mkdir(parents=True)
        (checkpoints / f"global_step_{step}" / role / "loss_scaler.json").write_text(text)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    step = checkpoints / f"global_step_{1 if named else 2}"
    how = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={step}"] if named else []
    overrides = [FP16, f"trainer.default_local_dir={checkpoints}", *how]
    with pytest.raises(Fp16PatchError) as refused:
        apply_flag(compose(*overrides))
    check_error(refused.value, "scaler-state-unusable", step / role / "loss_scaler.json", "JSON" if named else "format")
    section = "critic" if role == "critic" else ACTOR
    apply_flag(compose(*overrides, f"{section}.checkpoint.load_contents=[model]"))
    apply_flag(compose(*overrides, "trainer.resume_mode=disable"))
    (step / role / "loss_scaler.json").unlink()
    apply_flag(compose(*overrides))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_resume_with_another_number_of_ranks(compose, tmp_path, precision):
    """FSDP's ranks would miss their files when everything is up; Megatron loads any layout."""
    actor, critic = (tmp_path / "global_step_4" / role for role in ("actor", "critic"))
    for folder in (actor, critic):
        folder.mkdir(parents=True)
        for rank in range(4):
            (folder / f"model_world_size_4_rank_{rank}.pt").touch()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    overrides = [f"+precision@_global_={precision}", f"trainer.default_local_dir={tmp_path}"]
    with raises_code("several-problems", f"{actor} was saved with 4 ranks", "this run has 8", critic) as refused:
        apply_flag(compose(*overrides))
    assert refused.value.codes == ("resume-ranks-differ", "resume-ranks-differ")
    with raises_code("resume-ranks-differ", actor):
        apply_flag(compose(*overrides, "algorithm.adv_estimator=grpo"))

    critics = "critic.checkpoint.load_contents=[extra]"
    apply_flag(compose(*overrides, f"{ACTOR}.checkpoint.load_contents=[optimizer]", critics))
    apply_flag(compose(*overrides, "trainer.nnodes=2", "trainer.n_gpus_per_node=2"))
    apply_flag(compose(*overrides, "trainer.resume_mode=disable"))
    (actor / "model_world_size_8_rank_0.pt").touch()  # saved again by the run's own number
    apply_flag(compose(*overrides, critics))


def test_several_problems_are_told_at_once(compose):
    config = compose(FP16, f"{ROLLOUT}.dtype=bfloat16", f"{ROLLOUT}.quantization=fp8")
    with raises_code("several-problems", "quantization=fp8", "dtype=bfloat16") as refused:
        apply_flag(config)
    assert sorted(refused.value.codes) == ["setting-contradicts", "setting-refused"]


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3", "gemma3_text", "glm4"])
def test_model_types_that_vllm_refuses_in_float16(compose, model, model_type):
    (model / "config.json").write_text(json.dumps({"model_type": model_type}))
    with raises_code("setting-refused", model_type):
        apply_flag(compose(FP16))
    apply_flag(compose("+precision@_global_=bf16"))  # the same model in BF16 is fine


def test_the_text_model_inside_a_multimodal_one_counts(compose, model):
    (model / "config.json").write_text(json.dumps({"model_type": "x", "text_config": {"model_type": "gemma3_text"}}))
    with raises_code("setting-refused", "gemma3_text"):
        apply_flag(compose(FP16))


def test_a_misspelt_precision_is_hydras_own_error(compose):
    from hydra.errors import MissingConfigException

    with pytest.raises(MissingConfigException, match="precision/fp61") as refused:
        compose("+precision@_global_=fp61")
    assert all(option in str(refused.value) for option in ("bf16", "fp16", "fp32"))


def test_vllm_missing(compose, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else find_spec(name, *a))
    with raises_code("not-installed", "vLLM"):
        apply_flag(compose(FP16))


def test_another_application_of_hydra(compose):
    from omegaconf import OmegaConf

    with raises_code("application-not-supported"):
        apply_flag(OmegaConf.create({"fp16_patch": {"train_dtype": "fp16", "rollout_dtype": "fp16"}}))


def test_two_precisions_at_once(compose):
    with raises_code("several-precisions"):
        apply_flag(compose("+precision@_global_=[fp16,bf16]"))
