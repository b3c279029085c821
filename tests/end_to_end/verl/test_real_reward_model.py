# SPDX-License-Identifier: Apache-2.0
"""Run the real verl with a reward model and a teacher: each vLLM of the run is in the precision report, in FP16."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

MODEL = "${actor_rollout_ref.model.path}"


def engine(section: str) -> list[str]:
    """A small vLLM on the CPU, as the policy's is."""
    settings = {
        "tensor_model_parallel_size": 1,
        "max_model_len": 128,
        "max_num_seqs": 8,
        "free_cache_engine": False,
        "prompt_length": 16,
        "response_length": 24,
    }
    memory = (
        "engine_kwargs.vllm.kv_cache_memory_bytes=${actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes}"
    )
    return [
        *(f"{section}.{key}={value}" for key, value in settings.items()),
        f"++{section}.enable_sleep_mode=False",
        f"++{section}.{memory}",
    ]


def test_a_reward_model_and_a_teacher_are_in_the_report(run_verl):
    run = run_verl(
        "trainer.total_training_steps=1",
        "reward.reward_model.enable=True",
        f"reward.reward_model.model_path={MODEL}",
        "reward.reward_model.rollout.name=vllm",
        *engine("reward.reward_model.rollout"),
        "distillation.enabled=True",
        "distillation.n_gpus_per_node=1",
        "distillation.nnodes=1",
        f"distillation.teacher_models.teacher_model.model_path={MODEL}",
        *engine("distillation.teacher_models.teacher_model.inference"),
        "++ray_kwargs.ray_init.num_gpus=2",  # one for the teacher
    )
    assert run.result.status == "completed", run.why()
    roles = run.report["roles"]
    for role in ("rollout", "reward model", "teacher"):
        assert (roles[role]["weights"], roles[role]["compute"], roles[role]["kv_cache"]) == 3 * ("float16",), role
    workers = [
        process["process"] for process in run.report["processes"] if process["process"].startswith("vLLM worker")
    ]
    assert len(workers) == 3
    changed = {change["key"] for change in run.report["config_changes"]}
    assert {"reward.reward_model.rollout.dtype", "distillation.teacher_models.teacher_model.inference.dtype"} <= changed
    assert len(run.metrics) == 1
