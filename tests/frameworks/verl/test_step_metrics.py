# SPDX-License-Identifier: Apache-2.0
"""Counts through verl's own reducing functions: over micro-batches, ranks, mini-batches and updates of a step."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fp16_patch.frameworks.verl import masked_answers, mismatch
from fp16_patch.frameworks.verl.step_metrics import add_up_counts, is_count, leave_out_masked_answers
from fp16_patch.frameworks.verl.trainer import _count_by_step
from fp16_patch.loss_scaling.scale_rule import Counts
from fp16_patch.loss_scaling.update import Update, combined, describe
from fp16_patch.mismatch.metrics import mismatch_metrics
from fp16_patch.rollout_health import sampling
from fp16_patch.rollout_health.non_finite import find_non_finite

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")

Metrics = dict[str, Any]


@pytest.fixture(autouse=True)
def nothing_masked() -> Iterator[None]:
    yield
    masked_answers._MASKED.clear()


def rows_of_steps(*updates: Metrics) -> Metrics:
    """Return the row that verl logs for these updates, each the metrics of 8 answers."""
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    class Patched(MetricsAggregator):  # type: ignore[misc]
        _get_aggregation_type = add_up_counts.make(MetricsAggregator._get_aggregation_type)

    aggregator = Patched()
    aggregator.add_step_metrics({"prepared": 1.0})
    for metrics in updates:
        aggregator.add_step_metrics(metrics, sample_count=8)
    row: Metrics = aggregator.get_aggregated_metrics()
    return row


def reduced(*mini_batches: list[Metrics]) -> Metrics:
    """Return what verl logs for one update of a step: each mini-batch has the metrics of every data-parallel rank."""
    from verl.utils.metric import reduce_metrics
    from verl.utils.py_functional import append_to_dict

    metrics: Metrics = {}
    for ranks in mini_batches:  # as TrainingWorker.train_mini_batch
        gathered: dict[str, list[Any]] = {}
        for rank in ranks:
            for name, value in rank.items():
                gathered.setdefault(name, []).append(value)
        append_to_dict(metrics, {name: list(chain.from_iterable(lists)) for name, lists in gathered.items()})
    result: Metrics = reduce_metrics(metrics)
    return result


def test_counts_of_a_step_with_several_updates_add_up() -> None:
    log_probs, whole = torch.zeros(8, 3), torch.ones(8, 3)
    log_probs[2, 1:] = torch.nan
    asked = {("min_p", "0.1"): 3, ("min_tokens", "4"): 1}
    bad = find_non_finite(log_probs, whole).metrics("rollout") | find_non_finite(log_probs, whole).metrics("trainer")
    bad |= sampling.metrics(sampling.changed_requests(asked, ()))
    bad |= {f"mismatch/{name}": value for name, value in mismatch_metrics(log_probs, log_probs, whole).items()}
    bad |= {"rollout/masked_answers": 1.0, "actor/loss_not_finite": 2.0, "actor/losses_not_finite_total/max": 2.0}
    good = dict.fromkeys(bad, 0.0) | {"mismatch/tokens": 24.0, "actor/losses_not_finite_total/max": 3.0}
    row = rows_of_steps(good, bad, good)
    expected = {
        "rollout/non_finite_tokens": 2,
        "rollout/non_finite_answers": 1,
        "trainer/non_finite_tokens": 2,
        "rollout/masked_answers": 1,
        "rollout/changed_sampling": 4,
        "rollout/changed_sampling/min_p": 3,
        "rollout/changed_sampling/min_tokens": 1,
        "mismatch/tokens": 22 + 24 + 24,
        "mismatch/non_finite_tokens": 2,
        "actor/loss_not_finite": 2,
        "actor/losses_not_finite_total/max": 3,
        "mismatch/k3_kl": 0,
    }
    assert {name: row[name] for name in expected} == expected


def test_every_count_of_a_check_is_known() -> None:
    """A new one must be added to ``COUNTS``: verl would average it."""
    found = find_non_finite(torch.zeros(1, 1), torch.ones(1, 1))
    counted = [
        *found.metrics("rollout"),
        *found.metrics("trainer"),
        *sampling.metrics(sampling.Changed({("a", ""): 1})),
    ]
    assert all(map(is_count, counted))
    assert not is_count("actor/update_skipped")
    assert not is_count("timing_s/rollout_health")


def update(*, skipped: bool) -> Metrics:
    return describe(Update(skipped, None, 1.0, loss_not_finite=skipped), Counts())


def test_a_bad_loss_in_two_of_four_updates_counts_as_two_on_any_number_of_ranks() -> None:
    from verl.utils import tensordict_utils as tu

    mini_batches = []
    engines = [SimpleNamespace(), SimpleNamespace()]
    for number, bad in enumerate((True, False, True, False)):
        data = tu.get_tensordict({}, non_tensor_dict={"update_lr_scheduler": number == 3})
        found = [_count_by_step(engine, data, update(skipped=bad)) for engine in engines]
        mini_batches.append([{name: [value] for name, value in rank.items()} for rank in found])
    row = reduced(*mini_batches)
    assert (row["loss_not_finite"], row["update_skipped"]) == (2.0, 0.5)
    again = tu.get_tensordict({}, non_tensor_dict={"update_lr_scheduler": True})
    assert _count_by_step(engines[0], again, update(skipped=False))["loss_not_finite"] == 0, "a new step"


def test_the_same_count_on_openrlhf() -> None:
    row = combined([update(skipped=bad) for bad in (True, False, True, False)])
    assert (row["loss_not_finite"], row["update_skipped"]) == (2.0, 0.5)


def test_tokens_of_all_ranks_add_up_with_a_rank_of_padding() -> None:
    """In bypass mode every rank measures its own answers, over its micro-batches."""
    engine = SimpleNamespace(get_data_parallel_size=lambda: 3)
    mu, mask = torch.full((2, 4), -1.0), torch.ones(2, 4, dtype=torch.bool)
    spoilt = mu.clone()
    spoilt[0, 0] = torch.nan
    of_ranks = ([(mu, mu, mask), (spoilt, mu, mask)], [(mu, mu, mask)], [(mu, mu, ~mask)])
    row = reduced([mismatch.metrics(engine, seen) for seen in of_ranks])
    assert (row["mismatch/tokens"], row["mismatch/non_finite_tokens"]) == (23, 1)
    assert row["mismatch/k3_kl"] == 0


def test_masked_answers_are_in_none_of_verl_s_metrics_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordict import TensorDict
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1 import trainer_base

    lengths, scores = [2, 5, 3, 9], [1.0, -7.0, 0.5, 99.0]
    keys = [f"{uid}_0_0" for uid in "abcd"]
    tags = [{"is_padding": key == "d_0_0", "min_global_steps": 0, "max_global_steps": 0} for key in keys]
    batch = KVBatchMeta(keys=keys, tags=tags, partition_id="train")

    def ragged(make: Any) -> torch.Tensor:
        return torch.nested.as_nested_tensor([make(row) for row in range(4)], layout=torch.jagged)

    fields = {
        "prompts": ragged(lambda row: torch.ones(1 + row)),
        "num_turns": torch.tensor([2, 8, 2, 2]),
        **{
            name: ragged(lambda row: torch.full((lengths[row],), scores[row]))
            for name in ("responses", "advantages", "returns", "rm_scores")
        },
        "response_mask": ragged(lambda row: torch.full((lengths[row],), int(row != 1))),
    }
    monkeypatch.setattr(trainer_base.tq, "kv_batch_get", lambda **_: TensorDict(dict(fields), batch_size=4))
    trainer = SimpleNamespace(
        config=SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout={}, model=SimpleNamespace())),
        use_critic=False,
        _rollout_moe_lb_metrics_accumulator=None,
        _get_n_gpus_for_throughput=lambda: 1,
    )
    compute = leave_out_masked_answers.make(trainer_base.PPOTrainer._compute_metrics)

    def metrics(*masked: str) -> Metrics:
        masked_answers._MASKED.clear()
        masked_answers._MASKED.update(masked)
        found: Metrics = {}
        compute(trainer, batch, found, {"step": 1.0}, global_steps=1, epoch=0)
        return found

    row, stock = metrics("b_0_0"), metrics()
    assert (stock["response_length/max"], stock["critic/score/min"], stock["num_turns/max"]) == (5, -35, 8)
    assert (row["response_length/max"], row["response_length/mean"]) == (3, 2.5)
    assert (row["critic/score/min"], row["critic/rewards/max"]) == (1.5, 2.0)
    assert (row["num_turns/max"], row["training/num_turns/max"], row["prompt_length/mean"]) == (2, 2, 2)
    assert row["perf/total_num_tokens"] == stock["perf/total_num_tokens"], "the rollout has made them all"
    assert not batch.tags[1]["is_padding"], "the batch of the run is not changed"
