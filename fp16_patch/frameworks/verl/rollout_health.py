# SPDX-License-Identifier: Apache-2.0
"""Watch the rollout of each training step: log-probs that are not finite, and requests of another distribution.

The patches run in verl's task runner, before the trainer, a correction or the loss reads a log-prob. An error raised
there stops the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.engines.vllm.logits import NON_FINITE_LOGITS
from fp16_patch.engines.vllm.sampling import take_requests
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.frameworks.verl.rollout_trace import add_trace, trace_step
from fp16_patch.patching import wrap
from fp16_patch.precision import Precision
from fp16_patch.rollout_health import sampling

if TYPE_CHECKING:
    import torch

    from fp16_patch.rollout_health.non_finite import NonFinite

Trainer = Any  # verl.trainer.ppo.v1.trainer_base.PPOTrainer, never imported here
Batch = Any  # transfer_queue's KVBatchMeta: keys of a step's answers, not their tensors

_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_OURS: dict[str, Any] = {
    **TASK_RUNNER,
    "upstream": "none: our own proof",
    "remove_when": "verl checks the log-probs of its rollout engine",
}
WITHOUT_GROUPS = ("gae", "reinforce_plus_plus", "remax")
"""verl's advantage estimators that do not compare the answers of a prompt with each other."""


@dataclass
class RolloutState:
    """State on a trainer: the requests of its rollout engine that no step has looked at."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: int = 0
    """Rows of its logits that were not finite, and that no step has looked at."""


_MASKED: set[str] = set()  # keys of this step's masked answers; verl's advantage function gets no trainer


@wrap(
    f"{_TRAINER}._compute_old_log_prob",
    name="rollout-health",
    reason="a policy that overflows in vLLM returns NaN log-probs, and verl trains on them without a word",
    **_OURS,
)
def check_step(original: Any, self: Trainer, batch: Batch, metrics: dict[str, Any]) -> Any:
    """Check the rollout of this step, and count the trainer's own log-probs that are not finite."""
    start = time.perf_counter()
    check_sampling(self, metrics)
    check_log_probs(self, _without_padding(batch), metrics)
    before = time.perf_counter() - start
    batch = original(self, batch, metrics)
    start = time.perf_counter()
    if not _bypass(self):
        metrics |= _find(batch, "old_log_probs").metrics("trainer")
    metrics["timing_s/rollout_health"] = before + time.perf_counter() - start
    return batch


def check_log_probs(trainer: Trainer, batch: Batch, metrics: dict[str, Any]) -> None:
    """Count the rollout's log-probs that are not finite, and mask their answers where the flag says so.

    Raises:
        Fp16PatchError: The run must stop.
    """
    from fp16_patch.rollout_health.overflow_policy import answers_to_mask, refuse_logits

    if not getattr(trainer, "local_trigger_step", 0):  # else a later update of the same step
        _MASKED.clear()
    step = trainer.global_steps
    if not trainer.config.actor_rollout_ref.rollout.calculate_log_probs:
        state = attached(trainer, RolloutState)
        rows, state.rows = state.rows + _take_rows(trainer), 0
        metrics["rollout/non_finite_logits"] = float(rows)
        if rows:
            raise add_trace(refuse_logits(rows, step, Precision.current()), trainer, batch, None)
        if Precision.current().trace_rollout == step:
            trace_step(trainer, batch, None)
        return
    found = _find(batch, "rollout_log_probs", step=step)
    metrics |= found.metrics("rollout")
    precision = Precision.current()
    if found.first is not None:
        try:
            masked = answers_to_mask(found, _padded(batch, "responses"), step, precision)
        except Fp16PatchError as error:
            raise add_trace(error, trainer, batch, found.first) from None
        _mask(batch, masked)
    if precision.trace_rollout == step:
        trace_step(trainer, batch, found.first)
    if precision.rollout_overflow == "mask":
        metrics["rollout/masked_answers"] = float(sum(key in _MASKED for key in batch.keys))


def masked_keys() -> frozenset[str]:
    """Return the keys of the answers that were masked in this step."""
    return frozenset(_MASKED)


def _find(batch: Batch, name: str, step: int | None = None) -> NonFinite:
    """Find the tokens of this batch whose log-prob ``name`` is not finite. Check lengths where ``step`` is given."""
    from fp16_patch.rollout_health.non_finite import find_non_finite
    from fp16_patch.rollout_health.overflow_policy import check_lengths

    data = _get(batch, name, "response_mask")
    if step is not None:
        log_probs, tokens = (data[field].offsets().diff().tolist() for field in (name, "response_mask"))
        check_lengths(log_probs, tokens, step)
    padded = data.to_padded_tensor()
    return find_non_finite(padded[name], padded["response_mask"])


def _get(batch: Batch, *fields: str) -> Any:
    """Return fields of a step's answers, each a nested tensor ``[answers, tokens of the answer]``."""
    import transfer_queue

    return transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))


def _without_padding(batch: Batch) -> Batch:
    """Return the batch without the rows that verl has added to make it divisible: they are no answers."""
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    return SimpleNamespace(keys=keys, partition_id=batch.partition_id)


def _padded(batch: Batch, name: str) -> Any:
    return _get(batch, name).to_padded_tensor()[name]


def _mask(batch: Batch, masked: torch.Tensor) -> None:
    """Take answers out of every loss and mean: no token of theirs counts, and none of their numbers is NaN."""
    import torch
    import transfer_queue

    sessions = {key.rpartition("_")[0] for key, out in zip(batch.keys, masked.tolist(), strict=True) if out}
    _MASKED.update(key for key in batch.keys if key.rpartition("_")[0] in sessions)
    keys = [key for key in batch.keys if key in _MASKED]
    fields = ["response_mask", "loss_mask", "rollout_log_probs"]
    data = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
    for name in fields:
        zeros = [torch.zeros_like(row) for row in data[name].unbind()]
        data[name] = torch.nested.as_nested_tensor(zeros, layout=torch.jagged)
    transfer_queue.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=data)


@wrap(
    "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories",
    name="masked-answers-leave-their-group",
    when="verl.trainer.ppo.v1.trainer_base",
    also_bound=("verl.trainer.ppo.v1.trainer_base:compute_advantage_for_multi_trajectories",),
    reason="an answer that fp16_patch.rollout_overflow=mask takes out of the loss must not move its group's mean and "
    "deviation either",
    **_OURS,
)
def leave_groups(original: Any, data: Any, batch_keys: list[str], *args: Any, **kwargs: Any) -> Any:
    """Give each masked answer a group of its own, and an answer that is left alone in its group no advantage."""
    if not _MASKED:
        return original(data, batch_keys, *args, **kwargs)
    groups = data.non_tensor_batch["uid"]
    alone = lone_answers(groups.tolist(), batch_keys, _MASKED)
    for row, key in enumerate(batch_keys):
        if key in _MASKED:
            groups[row] = f"masked {key}"
    data = original(data, batch_keys, *args, **kwargs)
    if kwargs["adv_estimator"] not in WITHOUT_GROUPS:
        for name in ("advantages", "returns"):
            data.batch[name][alone] = 0
    return data


def lone_answers(groups: list[str], keys: list[str], masked: Iterable[str]) -> list[int]:
    """Return the rows of answers that have lost every other answer of their group. A key is ``{uid}_{session}_{n}``."""
    masked = set(masked)
    sessions: dict[str, set[str]] = {}
    left: dict[str, set[str]] = {}
    for group, key in zip(groups, keys, strict=True):
        session = key.rpartition("_")[0]
        sessions.setdefault(group, set()).add(session)
        if key not in masked:
            left.setdefault(group, set()).add(session)
    return [
        row
        for row, (group, key) in enumerate(zip(groups, keys, strict=True))
        if key not in masked and len(left[group]) == 1 < len(sessions[group])
    ]


def check_sampling(trainer: Trainer, metrics: dict[str, Any]) -> None:
    """Count the requests of this step that sampled from another distribution than the trainer computes.

    Raises:
        Fp16PatchError: There is one, something reads its log-probs, and the flag does not accept it.
    """
    from fp16_patch.frameworks.verl.config.sampling import accepted_requests, log_probs_are_read, whole_distribution

    state = attached(trainer, RolloutState)
    requests = state.requests + _take_requests(trainer)
    state.requests = Counter()
    changed = sampling.changed_requests(requests, accepted_requests(trainer.config))
    metrics |= sampling.metrics(changed)
    if changed and log_probs_are_read(trainer.config) and not Precision.current().allow_truncated_sampling:
        temperature, whole = trainer.config.actor_rollout_ref.rollout.temperature, whole_distribution(trainer.config)
        raise sampling.refuse_changed(changed, trainer.global_steps, temperature, whole)


@wrap(
    f"{_TRAINER}._validate",
    name="validation-requests-apart",
    reason="validation has sampling settings of its own; its requests are not those of the next training step",
    **_OURS,
)
def drop_validation_requests(original: Any, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Count the requests and logits so far for the next step, and forget those of the validation."""
    state = attached(self, RolloutState)
    state.requests += _take_requests(self)
    state.rows += _take_rows(self)
    result = original(self, *args, **kwargs)
    _take_requests(self)
    _take_rows(self)
    return result


def take_server_requests(_server: Any) -> dict[tuple[str, str], int]:
    """Return the requests that reached this vLLM server since the last call. Runs inside it."""
    return take_requests()


def _take_requests(trainer: Trainer) -> Counter[tuple[str, str]]:
    calls = {
        f"vLLM server {number} node {node}": server.__ray_call__.remote(take_server_requests)
        for number, replica in enumerate(_policy_replicas(trainer))
        for node, server in enumerate(replica.servers)
    }
    return sum((Counter(counts) for counts in answers(calls).values()), Counter())


def _take_rows(trainer: Trainer) -> int:
    """Return the rows of logits that were not finite since the last call; 0 where log-probs show them."""
    if trainer.config.actor_rollout_ref.rollout.calculate_log_probs:
        return 0
    calls = {
        f"vLLM workers of server {number}": replica.servers[0].collective_rpc.remote(NON_FINITE_LOGITS)
        for number, replica in enumerate(_policy_replicas(trainer))
    }
    return sum(max(rows or [0]) for rows in answers(calls).values())  # tensor-parallel ranks see the same rows


def _policy_replicas(trainer: Trainer) -> list[Any]:
    return list(trainer.llm_server_manager.get_replicas())


def _bypass(trainer: Trainer) -> bool:
    """Return whether verl takes the rollout's log-probs for the old ones: then the trainer has none of its own yet."""
    correction = trainer.config.algorithm.get("rollout_correction", None)
    return bool(correction and correction.get("bypass_mode", False))
