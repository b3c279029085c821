# SPDX-License-Identifier: Apache-2.0
"""The real verl with its legacy trainer under the flag: the same proof, and the same watch on its rollout."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
CPU = "fp16_patch.lab.cpu.verl"


@pytest.fixture
def sabotage(monkeypatch):
    """Return a function that breaks something in the processes of the run, and returns the override for it."""

    def name(what: str) -> str:
        monkeypatch.setenv("PYTHONPATH", str(HERE / "saboteur"))
        monkeypatch.setenv("SABOTAGE", what)
        return f"++ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES='{CPU},saboteur'"

    return name


def test_the_legacy_trainer_is_proven_and_its_rollout_watched(run_verl, sabotage, tmp_path):
    run = run_verl(
        "trainer.use_v1=False",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "trainer.test_freq=1",
        "trainer.save_freq=1",
        "fp16_patch.rollout_overflow=mask",
        "fp16_patch.trace_rollout=1",
        "algorithm.rollout_correction.rollout_is=token",
        sabotage("nan_log_prob"),
    )
    assert run.result.status == "completed", run.why()
    kinds = ("driver", "task runner", "trainer rank", "vLLM server", "vLLM worker")
    found = [next(kind for kind in kinds if p["process"].startswith(kind)) for p in run.report["processes"]]
    assert found == list(kinds)
    assert run.report["when"] == "after the first update"
    actor, reference, rollout = (run.report["roles"][role] for role in ("actor", "reference", "rollout"))
    assert actor["compute"] == reference["compute"] == rollout["compute"] == "float16"
    assert actor["master_weights"] == actor["gradients"] == actor["optimizer_state"] == "float32"
    assert rollout["weights"] == rollout["kv_cache"] == rollout["logits"] == "float16"
    assert "fp16_patch precision report: fp16" in run.log

    first, second = (step for step in run.metrics if "actor/loss_scale" in step)
    counts = ("rollout/non_finite_tokens", "rollout/non_finite_answers", "rollout/masked_answers")
    assert [first[name] for name in counts] == [1, 1, 1]
    assert [second[name] for name in counts] == [0, 0, 0]
    for step in (first, second):
        assert step["trainer/non_finite_tokens"] == step["rollout/changed_sampling"] == 0
        assert step["actor/loss_scale"] == 65536
        assert step["actor/update_skipped"] == 0
        assert math.isfinite(step["actor/grad_norm"])
        assert 0 < step["mismatch/log_ratio_abs_mean"] < 1e-3, "the mismatch of the finite tokens"
        assert step["timing_s/rollout_health"] > 0
    checkpoint = tmp_path / "run" / "fp16" / "checkpoints" / "global_step_2" / "actor"
    assert json.loads((checkpoint / "loss_scaler.json").read_text())["scale"] == 65536
    trace = json.loads((tmp_path / "run" / "fp16" / "trace_of_rollout_1.json").read_text())
    assert trace["found"].startswith("every module is finite in vLLM"), "only its log-prob was spoilt"


@pytest.mark.faults
def test_a_trainer_that_never_asks_its_ranks_ends_at_its_first_update(run_verl, sabotage):
    """Whatever main has started it: the ranks know whether they were asked for their reports."""
    run = run_verl("trainer.use_v1=False", sabotage("never_ask"), timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert "the proof of the precision flag does not reach it" in run.result.error, run.why()
    assert run.metrics == [], "nothing may have been trained"
