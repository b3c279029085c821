# SPDX-License-Identifier: Apache-2.0
"""The real OpenRLHF, DeepSpeed, vLLM and Ray under the flag, and what happens when something in them is broken."""

from __future__ import annotations

import collections
import json
import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from rescaled_policy import rescale_policy
from safetensors import safe_open

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("openrlhf") is None, reason="OpenRLHF is not installed"),
]


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch):
    """Break or watch something in every process of the runs to come."""

    def broken(what: str, **variables: str) -> None:
        folders = [str(Path(__file__).parent / "saboteur"), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        monkeypatch.setenv("SABOTAGE", what)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return broken


def kinds(report: dict) -> list[str]:
    """Kinds of process, one per report, such as ``actor rank``."""
    known = (
        "driver",
        "controller",
        "coordinator",
        "async controller",
        "sampler",
        "actor rank",
        "reference rank",
        "critic rank",
        "vLLM server",
        "vLLM worker",
    )
    return sorted(next(kind for kind in known if p["process"].startswith(kind)) for p in report["processes"])


def test_zero_2_on_two_ranks_with_reference_and_average(run_openrlhf, sabotage, tmp_path):
    witness = tmp_path / "witness.jsonl"
    sabotage("witness_every_weight", WITNESS=str(witness))
    run = run_openrlhf("algo.kl.init_coef=0.01", "train.enable_ema=true", "fp16_patch.trace_update=2", ranks=2)
    assert run.result.status == "completed", run.why()

    ranks = 2 * ["actor rank"] + 2 * ["reference rank"]
    assert kinds(run.report) == sorted(["driver", "controller", *ranks, "vLLM server", "vLLM worker"])
    assert run.report["when"] == "after the first update"
    actor, reference, rollout = (run.report["roles"][role] for role in ("actor", "reference", "rollout"))
    assert actor["compute"] == reference["compute"] == rollout["compute"] == "float16"
    assert actor["master_weights"] == actor["gradient_accumulation"] == actor["optimizer_state"] == "float32"
    assert actor["logits"] == rollout["logits"] == rollout["weights_on_the_wire"] == "float16"
    assert rollout["weights"] == rollout["kv_cache"] == "float16"
    assert actor["log_probs"] == "float32"
    assert "fp16_patch precision report: fp16" in run.log

    assert len(run.metrics) == 2
    for step in run.metrics:
        assert step["actor/loss_scale"] == 65536
        assert step["actor/update_skipped"] == 0
        assert 0 < step["actor/grad_norm"] < math.inf
        # An untrained model's log-probs: BF16 differs by 4e-3, FP16 by about 5e-4, the first token included.
        assert 0 < step["mismatch/log_ratio_abs_mean"] < 1.2e-3
        assert abs(step["mismatch/k1_kl"]) < 1.5e-4, "a forbidden EOS at the first token adds 3e-4 to it"

    assert "gradients of update 2 traced" in run.log
    trace = json.loads((tmp_path / "run" / "fp16" / "trace_of_update_2_actor.json").read_text())
    assert trace["loss_scale"] == 65536
    assert "lm_head" in {row["module"] for row in trace["modules"]}

    with safe_open(tmp_path / "run" / "fp16" / "model" / "model.safetensors", "pt") as saved:
        assert {saved.get_slice(name).get_dtype() for name in saved.keys()} == {"F16"}  # noqa: SIM118  no mapping

    arrived = [json.loads(line) for line in witness.read_text().splitlines()]
    assert sum(line["elements"] for line in arrived) > 100_000, "the whole model, after every step"
    assert {line["dtype"] for line in arrived} == {"torch.float16"}
    assert [line for line in arrived if line["different"]] == [], "vLLM holds something else than the trainer sent"


def test_zero_3_with_critic_reward_model_and_a_scale_that_overflows(run_openrlhf, world):
    run = run_openrlhf(
        "ds.zero_stage=3",
        "reward.remote_url=null",
        f"reward.model_name_or_path={world.model}",
        "algo.advantage.estimator=gae",
        "algo.advantage.is_correction_mode=mask",
        "algo.advantage.is_correction_threshold=[0.5,5.0]",
        "fp16_patch.loss_scaling.init_scale=1073741824",
    )
    assert run.result.status == "completed", run.why()
    roles = run.report["roles"]
    assert roles["critic"]["compute"] == roles["actor"]["compute"] == roles["reward"]["compute"] == "float16"
    assert roles["critic"]["gradient_accumulation"] == "float32"
    first, second = run.metrics
    assert first["actor/update_skipped"] == 1
    assert first["actor/loss_scale"] == 2**30
    assert second["actor/loss_scale"] == 2**29, "a first overflow must lower the scale"
    assert "actor_grad_norm" not in first
    assert first["actor/updates_skipped_total/max"] == 1
    assert {"critic/loss_scale", "critic/update_skipped"} <= first.keys()
    # Nothing was updated, so nothing was sent.
    assert first["timing/broadcast"] < 0.01


def test_async_trainer_that_skips_its_first_update(run_openrlhf, world, sabotage, tmp_path):
    witness = tmp_path / "witness.jsonl"
    sabotage("overflow_first,witness_every_weight", WITNESS=str(witness))
    evaluation = (f"eval.dataset={world.train_prompts}", "eval.steps=2", "eval.temperature=0.6")
    run = run_openrlhf("train.async_enable=true", "data.max_samples=32", "fp16_patch.trace_rollout=2", *evaluation)
    assert run.result.status == "completed", run.why()  # requests of the evaluation stop no run
    assert "Async evaluation completed" in run.log
    trace = json.loads((tmp_path / "run" / "fp16" / "trace_of_rollout_2.json").read_text())
    assert trace["found"].startswith("every module is finite in vLLM"), "the sampler was kept out"

    assert kinds(run.report) == sorted(
        ["driver", "coordinator", "async controller", "sampler", "actor rank", "vLLM server", "vLLM worker"]
    )
    assert len({process["pid"] for process in run.report["processes"]}) == 7, "each is a process of its own"
    assert run.report["when"] == "after the first update"
    actor, rollout = run.report["roles"]["actor"], run.report["roles"]["rollout"]
    assert actor["compute"] == rollout["compute"] == rollout["weights"] == "float16"
    assert actor["master_weights"] == "float32"

    assert [step["actor/update_skipped"] for step in run.metrics] == [1, 0, 0, 0]
    assert [step["actor/loss_scale"] for step in run.metrics] == [2**16, 2**15, 2**15, 2**15]
    assert "actor_grad_norm" not in run.metrics[0]
    assert all(0 < step["actor/grad_norm"] < math.inf for step in run.metrics[1:])
    assert {step["rollout/changed_sampling"] + step["rollout/non_finite_tokens"] for step in run.metrics} == {0}
    # Up to here both ends have the first weights; later batches are older than the trainer by an update.
    for step in run.metrics[:2]:
        assert 0 < step["mismatch/log_ratio_abs_mean"] < 1.2e-3
        assert abs(step["mismatch/k1_kl"]) < 1.5e-4, "a forbidden EOS at the first token adds 3e-4 to it"

    arrived = [json.loads(line) for line in witness.read_text().splitlines()]
    times = collections.Counter(line["name"] for line in arrived)
    assert sum(line["elements"] for line in arrived) > 100_000, "the whole model, after every update"
    assert set(times.values()) == {3}, "sent after each of the three updates, and not after the skipped one"
    assert [line for line in arrived if line["different"]] == [], "vLLM holds something else than the trainer sent"


def test_killed_and_resumed_with_the_scale_it_had_in_dynamic_batches(run_openrlhf, sabotage, tmp_path):
    overrides = (
        "data.max_samples=24",
        "ckpt.save_steps=1",
        "algo.advantage.is_correction_level=seq",
        "algo.advantage.is_correction_mode=mask",
        "algo.advantage.is_correction_threshold=[0.5,2.0]",
        "train.dynamic_batch_enable=true",
        "train.max_tokens_per_gpu=150",
    )
    sabotage("overflow_first,die_in_the_third")
    first = run_openrlhf(*overrides)
    assert first.result.status == "failed", first.why()
    assert len(first.metrics) == 2, "it was to die in its third update"
    assert first.metrics[0]["actor/update_skipped"] == 1
    assert "actor_grad_norm" not in first.metrics[0]
    kept = (tmp_path / "run").rename(tmp_path / "killed") / "fp16" / "checkpoints"
    saved = json.loads((kept / "_actor" / "global_step2" / "loss_scaler.json").read_text())
    assert saved["scale"] == 2**15
    assert saved["counts"]["skipped"] == 1

    sabotage("bring_checkpoints_back", EARLIER=str(kept), CHECKPOINTS=str(tmp_path / "run" / "fp16" / "checkpoints"))
    second = run_openrlhf(*overrides, "ckpt.load_enable=true")
    assert second.result.status == "completed", second.why()
    assert f"the loss scale resumes at {saved['scale']:g}" in second.log
    (third,) = second.metrics
    assert third["actor/loss_scale"] == 2**15
    assert third["actor/update_skipped"] == 0
    assert third["actor/updates_skipped_total/max"] == 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("lose_a_patch", "runs without the patch deepspeed-step"),
        pytest.param("lose_the_setup", "no answer from vLLM workers of server 0", marks=pytest.mark.faults),
    ],
)
def test_a_process_without_its_patches_stops_the_run(run_openrlhf, sabotage, what, said):
    sabotage(what)
    run = run_openrlhf(timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert said in run.result.error, run.why()
    assert run.metrics == [], "nothing may have been trained"


@pytest.mark.faults
def test_a_vllm_worker_that_fails_in_a_weight_update_ends_the_run(run_openrlhf, sabotage):
    sabotage("fail_while_receiving")
    run = run_openrlhf(timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert "sabotaged weight update" in run.log


@pytest.mark.faults
def test_updates_skipped_for_ever_stop_the_run_with_a_report(run_openrlhf, sabotage, tmp_path):
    sabotage("spoil_every_update")
    run = run_openrlhf("fp16_patch.loss_scaling.max_consecutive_skips=2", timeout_s=300)
    assert run.result.status == "failed", run.why()
    assert "2 updates in a row were skipped" in run.result.error, run.why()
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


def test_one_side_in_bf16_until_an_agent_samples_from_something_else(run_openrlhf):
    agent = Path(__file__).parent / "saboteur" / "agent.py"
    three_steps = ("data.max_samples=24", f"train.agent_func_path={agent}")
    run = run_openrlhf("fp16_patch.rollout_dtype=bf16", *three_steps)
    assert run.result.status == "failed", run.why()
    assert "step 3: vLLM sampled with top_p=0.8 (1 requests)" in run.result.error, run.why()
    assert len(run.metrics) == 2, "nothing may be trained on such an answer"
    assert [step["rollout/changed_sampling"] for step in run.metrics] == [0, 0]
    actor, rollout = run.report["roles"]["actor"], run.report["roles"]["rollout"]
    assert (actor["compute"], actor["loss_scale"]) == ("float16", "65536")
    assert rollout["compute"] == "bfloat16"
    # with AMX vLLM picks a kernel for small BF16 layers that holds their biases in FP32, and the report says so
    assert rollout["weights"] in ("bfloat16", "bfloat16 (99.6%), float32 (0.4%)")
    assert rollout["weights_on_the_wire"] == "float16"
    for step in run.metrics:
        assert step["mismatch/log_ratio_abs_mean"] > 2e-3, "one-sided FP16 buys nothing: this is BF16's mismatch"


def test_a_masked_answer_and_a_bad_loss_are_left_out_and_counted(run_openrlhf, sabotage, tmp_path):
    sabotage("nan_log_prob,nan_output")
    # One answer a micro-batch: the masked one has no token that counts, and every mean over it is 0/0 in stock.
    sampling = ("rollout.top_p=0.9", "fp16_patch.allow_truncated_sampling=true")
    small = ("data.max_samples=24", "train.micro_batch_size=1")
    run = run_openrlhf("fp16_patch.rollout_overflow=mask", "fp16_patch.trace_rollout=1", *small, *sampling)
    assert run.result.status == "completed", run.why()
    first, second, third = run.metrics
    counts = ("rollout/non_finite_tokens", "rollout/non_finite_answers", "rollout/masked_answers")
    assert [first[name] for name in counts] == [1, 1, 1]
    assert [second[name] for name in counts] == [0, 0, 0]
    for step in (first, second):
        assert step["trainer/non_finite_tokens"] == 0
        assert step["rollout/changed_sampling"] == step["rollout/changed_sampling/top_p"] == 32
        assert step["actor/update_skipped"] == step["actor/loss_not_finite"] == 0
        assert 0 < step["actor/grad_norm"] < math.inf
        assert [name for name, value in step.items() if not math.isfinite(value)] == []
    assert 0 < second["timing/rollout_health"] < 1
    trace = json.loads((tmp_path / "run" / "fp16" / "trace_of_rollout_1.json").read_text())
    assert trace["found"].startswith("every module is finite in vLLM"), "only its log-prob was spoilt"

    assert third["actor/loss_not_finite"] == third["actor/update_skipped"] == 1
    assert third["actor/losses_not_finite_total/max"] == 1
    assert third["actor/loss_scale"] == 65536, "no scale would help"
    assert "actor, update 3: the loss of rank 0 is not finite" in run.log
    assert "the model's log_probs is not finite" in run.log


def test_an_overflow_of_the_rollout_alone_stops_in_the_first_step(run_openrlhf, world, tmp_path):
    model = rescale_policy(world.model, tmp_path / "rescaled", 2.0**20)
    run = run_openrlhf(
        f"actor.model_name_or_path={model}",
        "fp16_patch.rollout_dtype=fp16",
        "algo.advantage.is_correction_level=off",
        precision="bf16",
        timeout_s=300,
    )
    assert run.result.status == "failed", run.why()
    assert run.metrics == []
    assert "rows of vLLM's logits" in run.result.error, run.why()
    assert "step 1: " in run.result.error
    assert run.report["when"] == "before training"
    assert "first module not finite in vLLM: model.embed_tokens (VocabParallel" in run.result.error, run.why()
    trace = json.loads((tmp_path / "run" / "fp16" / "rollout_overflow.json").read_text())
    assert (trace["step"], trace["answers"], trace["first"]) == (1, 32, "model.embed_tokens")
    assert "model.layers.0.mlp.down_proj" in [row["module"] for row in trace["modules"]]
