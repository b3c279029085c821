# SPDX-License-Identifier: Apache-2.0
"""The patches of verl's legacy trainer, on verl's own functions and batches. A real run: tests/end_to_end/verl."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from raising import raises_code

from fp16_patch import envs
from fp16_patch.frameworks.verl import controller, plan
from fp16_patch.frameworks.verl import legacy_rollout_health as health
from fp16_patch.frameworks.verl.padded_batch import PaddedBatch
from fp16_patch.precision import Precision

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")

NAN = float("nan")
REWARDS = [1.0, 0.0, 3.0, 7.0, 2.0, 2.5, 0.0, 1.0]
MASK = Precision(rollout_overflow="mask", rollout_overflow_max_share=0.5)


@pytest.fixture(autouse=True)
def no_step_before() -> Iterator[None]:
    yield
    health._metrics.clear()
    health._masked.clear()
    health._trainers.clear()


def batch(answers: int = 8, log_probs: torch.Tensor | None = None):
    """Return verl's batch of answers of 1 to 2 tokens, two groups of them, with prompts of 1 to 2 tokens."""
    from verl import DataProto

    real = torch.tensor([[1, 1], [1, 0]] * (answers // 2))
    return DataProto.from_dict(
        tensors={
            "prompts": torch.arange(2 * answers).reshape(answers, 2),
            "responses": 100 + torch.arange(2 * answers).reshape(answers, 2),
            "attention_mask": torch.cat([real.flip(1), real], dim=1),
            "response_mask": real.clone(),
            "token_level_rewards": torch.tensor([[reward, 0.0] for reward in REWARDS[:answers]]),
            **({} if log_probs is None else {"rollout_log_probs": log_probs}),
        },
        non_tensors={"uid": np.array([row // 4 for row in range(answers)], dtype=object)},
    )


def trainer(log_probs: bool = True) -> SimpleNamespace:
    rollout = {"calculate_log_probs": log_probs, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs_mode": None}
    config = {"actor_rollout_ref": {"rollout": rollout}, "algorithm": {"adv_estimator": "grpo"}}
    servers = SimpleNamespace(get_replicas=list)
    return SimpleNamespace(config=OmegaConf.create(config), global_steps=3, llm_server_manager=servers)


def spoilt(row: int, position: int = 0) -> torch.Tensor:
    log_probs = torch.full((8, 2), -1.0)
    log_probs[row, position] = NAN
    return log_probs


def check(data, precision: Precision, monkeypatch, **settings) -> dict:
    """Check a step as the trainer does; return the metrics that it logs."""
    monkeypatch.setenv(envs.PRECISION, precision.to_environment())
    result = SimpleNamespace(batch={"old_log_probs": torch.full((8, 2), -1.0)})
    run = health.check_step.make(lambda *_: (result, 0.5))
    assert run(trainer(**settings), data) == (result, 0.5)
    return health.add_metrics.make(lambda data, **_: {"answers": len(data)})(data, use_critic=False)


def test_a_rollout_that_is_finite_is_counted_and_changes_nothing(monkeypatch):
    data = batch(log_probs=torch.full((8, 2), -1.0))
    metrics = check(data, Precision(), monkeypatch)
    for name in ("rollout/non_finite_tokens", "trainer/non_finite_tokens", "rollout/changed_sampling"):
        assert metrics[name] == 0, name
    assert (metrics["answers"], metrics["timing_s/rollout_health"] > 0) == (8, True)
    assert health._metrics == {}, "the next step starts without them"


def test_padding_may_hold_anything(monkeypatch):
    metrics = check(batch(log_probs=spoilt(1, position=1)), Precision(), monkeypatch)
    assert metrics["rollout/non_finite_tokens"] == 0


def test_a_rollout_that_overflows_stops_the_run(monkeypatch):
    with raises_code("rollout-overflow", "step 3: ", "1 of 8 answers", "[108, 109]"):
        check(batch(log_probs=spoilt(4)), Precision(), monkeypatch)


def test_a_masked_answer_has_no_token_and_no_nan_and_is_in_no_metric(monkeypatch):
    data = batch(log_probs=spoilt(2, position=1))
    metrics = check(data, MASK, monkeypatch)
    assert metrics["rollout/masked_answers"] == metrics["rollout/non_finite_answers"] == 1
    assert metrics["answers"] == 7
    assert data.batch["response_mask"].sum(dim=1).tolist() == [2, 1, 0, 1, 2, 1, 2, 1]
    assert torch.isfinite(data.batch["rollout_log_probs"]).all()


def test_log_probs_that_are_missing_stop_the_run(monkeypatch):
    with raises_code("log-probs-incomplete", "step 3: "):
        check(batch(), Precision(), monkeypatch)
    assert check(batch(), Precision(), monkeypatch, log_probs=False)["rollout/non_finite_logits"] == 0


def test_bypass_mode_is_checked_before_it_takes_the_log_probs(monkeypatch):
    from verl.trainer.ppo.rollout_corr_helper import apply_bypass_mode

    monkeypatch.setenv(envs.PRECISION, MASK.to_environment())
    data, policy_loss = batch(log_probs=spoilt(0)), OmegaConf.create({})
    health.remember_trainer(trainer())
    health.check_bypass_step.make(apply_bypass_mode)(
        batch=data, rollout_corr_config=OmegaConf.create({}), policy_loss_config=policy_loss
    )
    assert policy_loss.loss_mode == "bypass_mode"
    assert torch.isfinite(data.batch["old_log_probs"]).all()
    assert health._metrics["rollout/masked_answers"] == 1
    assert "trainer/non_finite_tokens" not in health._metrics, "the trainer has none of its own"


@pytest.mark.parametrize("log_probs", [None, [-1.0, -2.0], [-1.0], [-1.0, -2.0, -3.0]])
def test_an_answer_has_a_log_prob_for_each_token(log_probs):
    async def postprocess(*_):
        return "padded"

    output = SimpleNamespace(response_ids=[5, 6], response_logprobs=log_probs)
    run = health.check_length.make(postprocess)(None, output, False)
    if log_probs is None or len(log_probs) == 2:
        assert asyncio.run(run) == "padded"
    else:
        with raises_code("log-probs-incomplete", "2 tokens"):
            asyncio.run(run)


def advantages(rows: list[int], masked: set[int], estimator: str) -> dict[int, list[float]]:
    """Return the advantages of these answers, where ``masked`` ones have lost their tokens as in a run."""
    from verl.trainer.ppo.ray_trainer import compute_advantage

    data = batch()[rows]
    data.batch["response_mask"] = torch.tensor([[row not in masked] * 2 for row in rows], dtype=torch.long)
    groups = data.non_tensor_batch["uid"].tolist()
    health._masked.update(f"{rows.index(row)}_0" for row in masked)
    result = health.leave_groups.make(compute_advantage)(data, adv_estimator=estimator, num_repeat=4, config=None)
    health._masked.clear()
    assert result.non_tensor_batch["uid"].tolist() == groups, "later steps see verl's groups"
    return dict(zip(rows, result.batch["advantages"].tolist(), strict=True))


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_the_others_get_what_they_get_without_masked_answers(estimator):
    masked, every = {1, 4}, list(range(8))
    found = advantages(every, masked, estimator)
    without = advantages([row for row in every if row not in masked], set(), estimator)
    for row in every:
        assert found[row] == ([0.0, 0.0] if row in masked else pytest.approx(without[row])), row


def test_an_answer_left_alone_in_its_group_gets_no_advantage():
    found = advantages(list(range(8)), {0, 1, 2}, "grpo")
    assert found[3] == [0.0, 0.0]
    assert any(found[4])


def test_the_texts_of_a_trace_have_no_padding():
    texts = PaddedBatch(batch()).prompts_and_answers([0, 1])
    assert [(prompt.tolist(), answer.tolist()) for prompt, answer in texts] == [
        ([0, 1], [100, 101]),
        ([3], [102]),
    ]


def test_each_trainer_must_show_its_own_patches_and_the_shared_ones():
    v1, legacy = (
        {patch.name for patch in controller.patches_of(module)}
        for module in ("verl.trainer.ppo.v1.trainer_sync", "verl.trainer.ppo.ray_trainer")
    )
    assert {patch.name for patch in plan.ALL_PATCHES} == v1 | legacy
    assert {"check-processes", "precision-report", "rollout-health"} <= v1 - legacy
    assert {"legacy-check-processes", "legacy-precision-report", "legacy-rollout-health"} <= legacy - v1
    assert {"mismatch-metrics", "remember-replicas", "loss-scale-metrics", "fsdp-save-scaler"} <= v1 & legacy


def test_the_report_is_due_around_the_first_update(monkeypatch):
    from fp16_patch.frameworks.verl import legacy_trainer

    published: list[str] = []
    monkeypatch.setattr(controller, "publish_if_due", lambda _, when: published.append(when))
    output = SimpleNamespace(meta_info={"metrics": {"actor/mismatch/kl": [1.0], "actor/loss": [math.pi]}})
    legacy_trainer.report_before_training.make(lambda *_: None)(trainer())
    legacy_trainer.report_before_first_update.make(lambda *_: None)(trainer(), batch())
    result = legacy_trainer.report_around_first_update.make(lambda *_: output)(trainer(), batch())
    assert published == ["before training", *2 * ["before the first update"], "after the first update"]
    assert set(result.meta_info["metrics"]) == {"mismatch/kl", "actor/loss"}
