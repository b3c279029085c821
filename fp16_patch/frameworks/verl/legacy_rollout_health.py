# SPDX-License-Identifier: Apache-2.0
"""Watch the rollout of verl's legacy trainer as ``rollout_health.py`` watches that of the V1 trainer.

Its batch is a ``DataProto`` in the task runner, and its steps have no dictionary of metrics that every function gets.
So the counts of a step wait here until verl computes the metrics of its batch.
"""

from __future__ import annotations

import time
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.engine_counts import EngineCounts, ask_counts
from fp16_patch.frameworks.verl.masked_answers import WITHOUT_GROUPS, lone_answers
from fp16_patch.frameworks.verl.padded_batch import PaddedBatch
from fp16_patch.frameworks.verl.releases import AGENT_LOOP, TASK_RUNNER
from fp16_patch.frameworks.verl.rollout_health import check_sampling
from fp16_patch.frameworks.verl.rollout_trace import add_trace, trace_step
from fp16_patch.patching import hook, wrap
from fp16_patch.precision import Precision

Trainer = Any  # verl.trainer.ppo.ray_trainer.RayPPOTrainer, never imported here
DataProto = Any  # verl's padded batch

MODULE = "verl.trainer.ppo.ray_trainer"
_TRAINER = f"{MODULE}:RayPPOTrainer"
_OURS: dict[str, Any] = {
    **TASK_RUNNER,
    "upstream": "none: our own proof",
    "remove_when": "verl removes its legacy trainer",
}
ROLLOUT = "rollout_log_probs"

_metrics: dict[str, Any] = {}  # of this step, until verl computes its own
_masked: set[str] = set()  # this step's masked answers; verl's functions below get no trainer
_trainers: list[Trainer] = []  # the one that trains in this process


def remember_trainer(trainer: Trainer) -> None:
    """Keep the trainer for verl's functions that do not get it."""
    _trainers[:] = [trainer]


@wrap(
    f"{_TRAINER}._compute_old_log_prob",
    name="legacy-rollout-health",
    reason="a policy that overflows in vLLM returns NaN log-probs, and verl trains on them without a word",
    **_OURS,
)
def check_step(original: Any, self: Trainer, batch: DataProto) -> Any:
    """Check the rollout of this step, and count the trainer's own log-probs that are not finite."""
    check_rollout(self, PaddedBatch(batch))
    result = original(self, batch)
    start = time.perf_counter()
    from fp16_patch.rollout_health.non_finite import find_non_finite

    old_log_probs = result[0].batch["old_log_probs"]
    _metrics.update(find_non_finite(old_log_probs, batch.batch["response_mask"]).metrics("trainer"))
    _metrics["timing_s/rollout_health"] += time.perf_counter() - start
    return result


@hook(
    "verl.trainer.ppo.rollout_corr_helper:apply_bypass_mode",
    name="legacy-rollout-health-bypass",
    when=MODULE,
    reason="in bypass mode the legacy trainer computes no log-probs of its own, and trains on the rollout's",
    **TASK_RUNNER,
)
def check_bypass_step(original: Any, batch: DataProto, *args: Any, **kwargs: Any) -> None:
    """Check the rollout of this step before its log-probs become the old ones."""
    check_rollout(_trainers[0], PaddedBatch(batch))
    original(batch, *args, **kwargs)


@hook(
    "verl.experimental.agent_loop.agent_loop:AgentLoopWorker._agent_loop_postprocess",
    name="legacy-log-prob-lengths",
    required=False,  # the agent loops' own processes write no report; an error of this patch ends their import
    reason="the legacy trainer's batch pads missing log-probs with 0, the log-prob of a certain token",
    **AGENT_LOOP,
)
async def check_length(original: Any, self: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse an answer that has fewer or more log-probs than tokens, before it is padded.

    Raises:
        Fp16PatchError: The numbers differ.
    """
    log_probs, tokens = output.response_logprobs, len(output.response_ids)
    if log_probs is not None and len(log_probs) != tokens:
        raise _incomplete(f"an answer has {tokens} tokens and {len(log_probs)} log-probs from the rollout")
    return await original(self, output, *args, **kwargs)


def check_rollout(trainer: Trainer, batch: PaddedBatch) -> None:
    """Count the rollout's log-probs that are not finite and its changed requests, mask answers, or stop.

    Raises:
        Fp16PatchError: The run must stop.
    """
    start = time.perf_counter()
    _metrics.clear()
    _masked.clear()
    missed, found = attached(trainer, EngineCounts).take(), ask_counts(trainer).wait()
    check_sampling(trainer, missed.requests + found.requests, _metrics)
    if trainer.config.actor_rollout_ref.rollout.calculate_log_probs:
        _check_log_probs(trainer, batch)
    else:
        _check_logits(trainer, batch, missed.rows + found.rows)
    _metrics["timing_s/rollout_health"] = time.perf_counter() - start


def _incomplete(what: str) -> Fp16PatchError:
    return Fp16PatchError(
        what,
        code="log-probs-incomplete",
        allowed="one log-prob for each sampled token (actor_rollout_ref.rollout.calculate_log_probs)",
        next_step="look at the agent loop that returns the answers",
    )


def _check_log_probs(trainer: Trainer, batch: PaddedBatch) -> None:
    from fp16_patch.rollout_health.overflow_policy import answers_to_mask

    step, precision = trainer.global_steps, Precision.current()
    if ROLLOUT not in batch:
        raise _incomplete(f"step {step}: the rollout returned no log-probs, although the run asks for them")
    found = batch.find(ROLLOUT)
    _metrics.update(found.metrics("rollout"))
    if found.first is not None:
        try:
            masked = answers_to_mask(found, batch.responses, step, precision)
        except Fp16PatchError as error:
            raise add_trace(error, trainer, batch, found.first) from None
        _masked.update(batch.mask(masked))
    if precision.trace_rollout == step:
        trace_step(trainer, batch, found.first)
    if precision.rollout_overflow == "mask":
        _metrics["rollout/masked_answers"] = float(len(_masked))


def _check_logits(trainer: Trainer, batch: PaddedBatch, rows: int) -> None:
    """Look at vLLM's logits where nobody asks for log-probs: no answer can be named, so none can be masked."""
    from fp16_patch.rollout_health.overflow_policy import refuse_logits

    step, precision = trainer.global_steps, Precision.current()
    _metrics["rollout/non_finite_logits"] = float(rows)
    if rows:
        raise add_trace(refuse_logits(rows, step, precision), trainer, batch, None)
    if precision.trace_rollout == step:
        trace_step(trainer, batch, None)


@wrap(
    f"{MODULE}:compute_advantage",
    name="legacy-masked-answers-leave-their-group",
    also_bound=("verl.trainer.ppo.v1.utils:compute_advantage",),
    reason="an answer that fp16_patch.rollout_overflow=mask takes out of the loss must not move its group's mean and "
    "deviation either",
    **_OURS,
)
def leave_groups(original: Any, data: DataProto, *args: Any, **kwargs: Any) -> DataProto:
    """Give each masked answer a group of its own, and an answer that is left alone in its group no advantage."""
    if not _masked or kwargs["adv_estimator"] in WITHOUT_GROUPS:
        return original(data, *args, **kwargs)
    import numpy as np

    groups, keys = data.non_tensor_batch["uid"], PaddedBatch(data).keys
    alone = lone_answers(groups.tolist(), keys, _masked)
    apart = [f"masked {key}" if key in _masked else group for key, group in zip(keys, groups, strict=True)]
    data.non_tensor_batch["uid"] = np.array(apart, dtype=object)
    data = original(data, *args, **kwargs)
    data.non_tensor_batch["uid"] = groups
    for name in ("advantages", "returns"):
        data.batch[name][alone] = 0
    return data


@wrap(
    "verl.trainer.ppo.metric_utils:compute_data_metrics",
    name="legacy-rollout-health-metrics",
    when=MODULE,
    also_bound=(f"{MODULE}:compute_data_metrics", "verl.trainer.ppo.v1.trainer_base:compute_data_metrics"),
    reason="the legacy trainer logs what this function returns; a masked answer is in no metric of its batch",
    **_OURS,
)
def add_metrics(original: Any, batch: DataProto, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Add the counts of this step to verl's metrics of its batch, which leave masked answers out."""
    if _masked:
        keys = PaddedBatch(batch).keys
        batch = batch[[row for row, key in enumerate(keys) if key not in _masked]]
    found: dict[str, Any] = original(batch, *args, **kwargs)
    found |= _metrics
    _metrics.clear()
    return found
