# SPDX-License-Identifier: Apache-2.0
"""Make verl's metrics of a step say what they mean: counts add up, and a masked answer is not an answer.

With ``parameter_sync_step`` above 1 a step of verl has several updates, each with a batch of its own, and one row of
metrics. verl then decides by its name whether a metric is averaged, added up, or an extreme.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fp16_patch.frameworks.verl import mismatch
from fp16_patch.frameworks.verl.masked_answers import masked_keys
from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.loss_scaling.update import COUNTS as COUNTS_OF_UPDATES
from fp16_patch.mismatch import METRIC_PREFIX
from fp16_patch.patching import wrap

Trainer = Any  # verl.trainer.ppo.v1.trainer_base.PPOTrainer, never imported here
Batch = Any  # transfer_queue's KVBatchMeta: keys of a step's answers, not their tensors

CHANGED_SAMPLING = "rollout/changed_sampling"
COUNTS = frozenset(
    (
        *(f"{engine}/non_finite_{what}" for engine in ("rollout", "trainer") for what in ("tokens", "answers")),
        *("rollout/non_finite_logits", "rollout/masked_answers", CHANGED_SAMPLING),
        *(f"{METRIC_PREFIX}{count}" for count in mismatch.COUNTS),
        *(f"{role}/{count}" for role in ("actor", "critic") for count in COUNTS_OF_UPDATES),
    )
)
"""Metrics of this package that count something in a step."""


def is_count(metric: str) -> bool:
    """Return whether a metric's values of one step must be added up."""
    return metric in COUNTS or metric.startswith(f"{CHANGED_SAMPLING}/")


@wrap(
    "verl.trainer.ppo.v1.utils:MetricsAggregator._get_aggregation_type",
    name="counts-add-up",
    **TASK_RUNNER,
    parameters=("self", "metric_name"),
    reason="verl averages what it does not know by name, and takes the minimum of rollout/changed_sampling/min_p: with "
    "parameter_sync_step=4 one answer that is not finite would be logged as 0.25",
    upstream="verl trainer/ppo/v1/utils.py, MetricsAggregator",
    remove_when="verl lets a metric say how it is aggregated over the updates of a step",
)
def add_up_counts(original: Any, self: Any, metric_name: str) -> str:
    """Return ``"sum"`` for a count of this package, else verl's own choice."""
    return "sum" if is_count(metric_name) else str(original(self, metric_name))


@wrap(
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_metrics",
    name="masked-answers-leave-the-metrics",
    **TASK_RUNNER,
    parameters=("self", "batch"),
    reason="an answer that fp16_patch.rollout_overflow=mask takes out of the loss would still count in verl's metrics "
    "of scores, rewards, lengths and turns",
    upstream="none: our own setting",
    remove_when="never",
)
def leave_out_masked_answers(original: Any, self: Trainer, batch: Batch, *args: Any, **kwargs: Any) -> Any:
    """Hand verl a batch in which masked answers are marked as padding. Padding is in none of its metrics of answers."""
    masked = masked_keys()
    if masked:
        marked = zip(batch.keys, batch.tags, strict=True)
        batch = replace(batch, tags=[tag | {"is_padding": True} if key in masked else tag for key, tag in marked])
    return original(self, batch, *args, **kwargs)
