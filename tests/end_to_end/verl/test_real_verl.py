# SPDX-License-Identifier: Apache-2.0
"""The real verl, vLLM and Ray under the flag, and what happens when something in them is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

CPU = "fp16_patch.lab.cpu.verl"


def processes(report: dict) -> list[str]:
    """Kinds of process, one per report, such as ``trainer rank``."""
    kinds = ("driver", "task runner", "trainer rank", "vLLM server", "vLLM worker")
    return sorted(next(kind for kind in kinds if p["process"].startswith(kind)) for p in report["processes"])


HARD_CODED = (
    "actor_rollout_ref.rollout.dtype=bfloat16",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=bf16",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
)


def test_fp16_on_two_ranks_with_a_reference_policy(run_verl):
    run = run_verl("actor_rollout_ref.actor.use_kl_loss=True", *HARD_CODED, "fp16_patch.overwrite=true", ranks=2)
    assert run.result.status == "completed", run.why()
    overwritten = [f"{one['key']}={one['before']}" for one in run.report["config_changes"] if one["overwritten"]]
    assert sorted(overwritten) == sorted(word.lstrip("+") for word in HARD_CODED)
    assert "replaced in your command or files (fp16_patch.overwrite=true): " in run.log

    pairs = 2 * ["trainer rank"] + 2 * ["vLLM server"] + 2 * ["vLLM worker"]
    assert processes(run.report) == ["driver", "task runner", *pairs]
    assert run.report["when"] == "after the first update"
    actor, reference, rollout = (run.report["roles"][role] for role in ("actor", "reference", "rollout"))
    assert actor["compute"] == reference["compute"] == rollout["compute"] == "float16"
    assert actor["master_weights"] == actor["gradient_reduction"] == actor["gradients"] == "float32"
    assert actor["optimizer_state"] == "float32"
    assert actor["logits"] == rollout["logits"] == "float16"
    assert rollout["weights"] == rollout["kv_cache"] == "float16"
    assert "fp16_patch precision report: fp16" in run.log

    assert len(run.metrics) == 2
    for step in run.metrics:
        assert step["actor/loss_scale"] == 65536
        assert step["actor/update_skipped"] == 0
        # An untrained model's log-probs: BF16 differs by 1e-3 and more, FP16 by about 1e-4.
        assert 0 < step["mismatch/log_ratio_abs_mean"] < 6e-4
        assert step["mismatch/pi_minus_mu_min"] < 0 < step["mismatch/pi_minus_mu_max"]
        # verl computes k3 in FP32, where it is mostly rounding; ours is float64. The same quantity all the same.
        assert step["mismatch/prob_diff_mean"] == pytest.approx(step["training/rollout_probs_diff_mean"], rel=1e-3)


def test_critic_and_merged_lora_on_fsdp1(run_verl):
    run = run_verl(
        "algorithm.adv_estimator=gae",
        "actor_rollout_ref.actor.strategy=fsdp",
        "critic.strategy=fsdp",
        "critic.model.path=${actor_rollout_ref.model.path}",
        "critic.model.tokenizer_path=${actor_rollout_ref.model.path}",
        "critic.ppo_micro_batch_size_per_gpu=8",
        "critic.ppo_mini_batch_size=8",
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.target_modules=all-linear",
        "actor_rollout_ref.model.lora.merge=True",
        "actor_rollout_ref.rollout.load_format=safetensors",
        "fp16_patch.loss_scaling.init_scale=1024",
    )
    assert run.result.status == "completed", run.why()
    roles = run.report["roles"]
    assert roles["critic"]["compute"] == roles["actor"]["compute"] == "float16"
    assert roles["critic"]["gradients"] == "float32"
    # An untrained critic's gradients may overflow: its first update is then skipped, and has made no state.
    skipped = run.metrics[0]["critic/update_skipped"] == 1
    assert roles["critic"]["optimizer_state"] == ("created at the first update" if skipped else "float32")
    assert roles["critic"]["loss_scale"] == ("512" if skipped else "1024")
    assert roles["rollout"]["weights_on_the_wire"] == "float16", "merged LoRA weights must not pass through BF16"
    assert run.metrics[0]["critic/loss_scale"] == run.metrics[0]["actor/loss_scale"] == 1024, "the user's setting"


def test_megatron_survives_an_overflow(run_verl):
    """Stock verl ends there: tests/frameworks/verl_megatron/test_stock_megatron.py."""
    run = run_verl(
        "model_engine=megatron",
        "actor_rollout_ref.actor.strategy=megatron",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.entropy_coeff=0.01",  # an untrained policy is rewarded for nothing
        "trainer.total_training_steps=3",
        "fp16_patch.loss_scaling.init_scale=1073741824",
        "fp16_patch.loss_scaling.backoff_factor=0.0000152587890625",  # 2**-16: back in one step
    )
    assert run.result.status == "completed", run.why()
    actor, reference, rollout = (run.report["roles"][role] for role in ("actor", "reference", "rollout"))
    assert actor["compute"] == reference["compute"] == rollout["compute"] == rollout["weights"] == "float16"
    assert rollout["weights_on_the_wire"] == "float16"
    assert actor["master_weights"] == actor["gradient_reduction"] == actor["gradients"] == "float32"
    assert actor["optimizer"] == "torch.AdamW in DistributedOptimizer"
    assert [step["actor/loss_scale"] for step in run.metrics] == [2**30, 2**14, 2**14]
    assert [step["actor/update_skipped"] for step in run.metrics] == [1, 0, 0]
    assert "actor/grad_norm" not in run.metrics[0]
    for step in run.metrics[1:]:
        assert step["actor/grad_norm"] > 0
        assert 0 < step["mismatch/log_ratio_abs_mean"] < 1e-3


def sabotage(monkeypatch: pytest.MonkeyPatch, what: str) -> str:
    """Environment and override that break ``what`` in the processes of the run."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "saboteur"))
    monkeypatch.setenv("SABOTAGE", what)
    return f"++ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES='{CPU},saboteur'"


def test_a_patch_missing_in_a_trainer_rank_stops_the_run(run_verl, monkeypatch):
    run = run_verl(sabotage(monkeypatch, "lose_a_patch"), timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert "trainer rank 0" in run.result.error
    assert "fsdp-loss-scaler" in run.result.error
    assert run.metrics == [], "nothing may have been trained"


@pytest.mark.faults
def test_a_changed_function_in_a_vllm_worker_stops_the_run(run_verl, monkeypatch):
    run = run_verl(sabotage(monkeypatch, "change_the_source"), timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert "observe-wire" in run.log, run.why()
    assert run.metrics == [], "nothing may have been trained"


@pytest.mark.faults
def test_a_vllm_worker_that_fails_in_a_weight_update_ends_the_run(run_verl, monkeypatch):
    run = run_verl(sabotage(monkeypatch, "fail_while_receiving"), timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert "sabotaged weight update" in run.result.error
    assert run.metrics == [], "nothing may have been trained"


def test_killed_and_resumed_with_the_scale_it_had(run_verl, monkeypatch, tmp_path):
    overrides = ("trainer.save_freq=1", "trainer.total_training_steps=3")
    with monkeypatch.context() as sabotaged:
        first = run_verl(*overrides, sabotage(sabotaged, "die_in_third_update"), timeout_s=300)
    assert first.result.status == "failed", first.why()
    assert len(first.metrics) == 2, "it was to die in its third update"
    assert first.metrics[0]["actor/update_skipped"] == 1
    assert "actor/grad_norm" not in first.metrics[0]
    kept = (tmp_path / "run").rename(tmp_path / "killed") / "fp16" / "checkpoints" / "global_step_2"
    saved = json.loads((kept / "actor" / "loss_scaler.json").read_text())
    assert saved["scale"] == 2**15
    assert saved["counts"]["skipped"] == 1

    second = run_verl(*overrides, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={kept}")
    assert second.result.status == "completed", second.why()
    (third,) = second.metrics
    assert third["actor/loss_scale"] == 2**15
    assert third["actor/update_skipped"] == 0
    assert third["actor/updates_skipped_total/max"] == 1


@pytest.mark.faults
def test_updates_skipped_for_ever_stop_the_run_with_a_report(run_verl, monkeypatch, tmp_path):
    overrides = ("trainer.total_training_steps=9", "fp16_patch.loss_scaling.max_consecutive_skips=2")
    run = run_verl(*overrides, sabotage(monkeypatch, "spoil_every_update"), timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert "max_consecutive_skips=2" in run.result.error
    (step,) = run.metrics  # the first skipped update is logged, the second stops the run
    assert step["actor/update_skipped"] == step["actor/loss_not_finite"] == 1
    assert step["actor/loss_scale"] == 65536, "no loss scale helps"
    reports = sorted((tmp_path / "run" / "fp16").glob("overflow_report_actor.*"))
    assert [path.suffix for path in reports] == [".json", ".txt"]
    report = json.loads(reports[0].read_text())
    assert report["case"] == "loss"
    assert report["loss_not_finite"] is not None
    assert report["counts"]["losses_not_finite"] == report["counts"]["skipped"] == 2
    assert "precision is not the cause" in reports[1].read_text()
