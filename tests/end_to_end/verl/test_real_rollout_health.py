# SPDX-License-Identifier: Apache-2.0
"""Real verl and vLLM whose rollout engine returns numbers that are not numbers, or samples something else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rescaled_policy import rescale_policy

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
CPU = "fp16_patch.lab.cpu.verl"
TWO_TURNS = (
    "actor_rollout_ref.rollout.agent.default_agent_loop=two_turn",
    f"actor_rollout_ref.rollout.agent.agent_loop_config_path={HERE / 'agent_loops' / 'loops.yaml'}",
)


def test_a_masked_answer_leaves_the_loss_and_is_counted(run_verl, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(HERE / "saboteur"))
    monkeypatch.setenv("SABOTAGE", "nan_log_prob")
    run = run_verl(
        "fp16_patch.rollout_overflow=mask",
        "fp16_patch.trace_rollout=1",
        "algorithm.rollout_correction.rollout_is=token",
        f"++ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES='{CPU},saboteur'",
    )
    assert run.result.status == "completed", run.why()
    first, second = run.metrics
    counts = ("rollout/non_finite_tokens", "rollout/non_finite_answers", "rollout/masked_answers")
    assert [first[name] for name in counts] == [1, 1, 1]
    assert [second[name] for name in counts] == [0, 0, 0]
    for step in run.metrics:
        assert step["trainer/non_finite_tokens"] == step["rollout/changed_sampling"] == 0
        assert step["actor/update_skipped"] == 0
        assert math.isfinite(step["actor/grad_norm"])
        assert 0 < step["mismatch/log_ratio_abs_mean"] < 1e-3, "the mismatch of the finite tokens"
    trace = json.loads((tmp_path / "run" / "fp16" / "trace_of_rollout_1.json").read_text())
    assert trace["found"].startswith("every module is finite in vLLM"), "only its log-prob was spoilt"
    assert "model.layers.0.mlp.down_proj" in [row["module"] for row in trace["modules"]]


@pytest.mark.parametrize("log_probs", [True, False])
def test_a_policy_that_overflows_in_vllm_only_stops_in_the_first_step(run_verl, world, tmp_path, log_probs):
    model = rescale_policy(world.model, tmp_path / "rescaled", 2.0**20)
    run = run_verl(
        f"actor_rollout_ref.model.path={model}",
        "fp16_patch.train_dtype=bf16",
        f"actor_rollout_ref.rollout.calculate_log_probs={log_probs}",
    )
    assert run.result.status == "failed", run.why()
    assert run.metrics == []
    assert "step 1: " in run.result.error
    assert "fp16_patch.rollout_overflow=mask" in run.result.error, run.why()
    assert ("[0, 0" if log_probs else "rows of vLLM's logits") in run.result.error, run.why()
    assert "first module not finite in vLLM: model.embed_tokens (VocabParallel" in run.result.error, run.why()
    trace = json.loads((tmp_path / "run" / "fp16" / "rollout_overflow.json").read_text())
    assert (trace["step"], trace["first"]) == (1, "model.embed_tokens")


def test_sampling_that_only_an_agent_loop_passes_stops_the_run(run_verl, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE / "agent_loops"))
    monkeypatch.setenv("AGENT_SAMPLING", '{"top_p": 0.8}')
    run = run_verl(*TWO_TURNS)
    assert run.result.status == "failed", run.why()
    assert "top_p=0.8 (32 requests)" in run.result.error, run.why()


def test_a_run_that_only_validates_has_a_precision_report(run_verl):
    run = run_verl("trainer.val_only=true", "trainer.val_before_train=true")
    assert run.report is not None, run.why()
    assert run.report["when"] == "before training"
    assert run.report["roles"]["rollout"]["weights"] == "float16"
    assert "fp16_patch precision report: fp16" in run.log
