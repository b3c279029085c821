# SPDX-License-Identifier: Apache-2.0
"""Run the real verl with a reward model and a teacher: each vLLM of the run is in the precision report, in FP16."""

from __future__ import annotations

from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.precision import Precision
from fp16_patch.report.precision_report import publish

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

POLICY = "actor_rollout_ref"
REWARD_MODEL = "reward.reward_model"
TEACHER = "distillation.teacher_models.teacher_model"
ROLES = ("rollout", "reward model", "teacher")


@pytest.fixture(scope="module")
def reward_model(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained model with one score in place of the vocabulary: verl's discriminative reward model."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("reward_model")
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(world.model, num_labels=1))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(world.model).save_pretrained(folder)
    return folder


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
    memory = "engine_kwargs.vllm.kv_cache_memory_bytes"
    return [
        *(f"{section}.{key}={value}" for key, value in settings.items()),
        f"++{section}.enable_sleep_mode=False",
        f"++{section}.{memory}=${{{POLICY}.rollout.{memory}}}",
    ]


def of_kind(report: dict, kind: str) -> list[dict]:
    return [process for process in report["processes"] if process["process"].startswith(kind)]


def test_a_reward_model_and_a_teacher_are_in_the_report(run_verl, reward_model, tmp_path):
    run = run_verl(
        "trainer.total_training_steps=1",
        "reward.custom_reward_function.path=null",  # the reward model scores, through verl's /classify
        f"{REWARD_MODEL}.enable=True",
        f"{REWARD_MODEL}.model_path={reward_model}",
        f"{REWARD_MODEL}.rollout.name=vllm",
        *engine(f"{REWARD_MODEL}.rollout"),
        "distillation.enabled=True",
        "distillation.n_gpus_per_node=1",
        "distillation.nnodes=1",
        "distillation.distillation_loss.loss_mode=abs",
        f"{TEACHER}.model_path=${{{POLICY}.model.path}}",
        *engine(f"{TEACHER}.inference"),
        "++ray_kwargs.ray_init.num_gpus=2",  # one for the teacher
    )
    assert run.result.status == "completed", run.why()
    assert run.report["when"] == "after the first update"
    roles = run.report["roles"]
    for role in ROLES:
        assert roles[role]["compute"] == roles[role]["kv_cache"] == "float16", role
    assert roles["rollout"]["weights"] == roles["teacher"]["weights"] == "float16"
    assert roles["reward model"]["weights"].startswith("float16 ("), "vLLM keeps the score's layer in float32"
    changed = {change["key"]: change["after"] for change in run.report["config_changes"]}
    for section in (f"{POLICY}.rollout", f"{REWARD_MODEL}.rollout", f"{TEACHER}.inference"):
        assert changed[f"{section}.dtype"] == "float16"

    servers, workers = of_kind(run.report, "vLLM server"), of_kind(run.report, "vLLM worker")
    assert sorted(role for worker in workers for role in worker["roles"]) == sorted(ROLES)
    assert len({server["pid"] for server in servers}) == len({worker["pid"] for worker in workers}) == len(ROLES)
    for process in (*servers, *workers):
        assert process["ledger"], process["process"]
        assert {entry["outcome"] for entry in process["ledger"]} <= {"applied", "native"}

    number = {worker["process"].rpartition(" ")[2] for worker in workers}
    assert {server["process"] for server in servers} == {f"vLLM server {i} node 0" for i in number}

    (step,) = run.metrics
    assert step["critic/score/min"] < step["critic/score/max"], "the reward model has scored"
    # The teacher has the weights of the policy, so it is as far from the trainer as the rollout is.
    assert step["actor/distillation/abs_loss"] == pytest.approx(step["mismatch/log_ratio_abs_mean"], rel=0.5)
    assert step["actor/update_skipped"] == 0

    for worker in workers:
        ((role, rows),) = worker["roles"].items()
        for row in rows.keys() & {"weights", "compute", "kv_cache"}:
            other = {**worker, "roles": {role: {**rows, row: "bfloat16"}}}
            report_path = str(tmp_path / "other.json")
            with raises_code("precision-violated", role, row.replace("_", " "), "bfloat16"):
                publish(Precision("fp16", "fp16"), [other], [], report_path, "after the first update")
