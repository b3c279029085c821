# SPDX-License-Identifier: Apache-2.0
"""Watch the rollout of each training step: log-probs that are not finite, and requests of another distribution.

The patches run in verl's task runner while it computes the old log-probs. There it reads the log-probs of both engines
for its own metrics, so the check looks at what verl has read and fetches nothing. No reference, critic, correction or
loss has seen a log-prob by then. An error raised there stops the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.engine_counts import EngineCounts, ask_counts
from fp16_patch.frameworks.verl.masked_answers import clear_masked, mask_answers
from fp16_patch.frameworks.verl.releases import TASK_RUNNER, TRANSFER_QUEUE
from fp16_patch.frameworks.verl.rollout_trace import add_trace, trace_step
from fp16_patch.patching import opened, scoped, wrap
from fp16_patch.precision import Precision
from fp16_patch.rollout_health import sampling

if TYPE_CHECKING:
    import torch

    from fp16_patch.rollout_health.non_finite import NonFinite

Trainer = Any  # verl.trainer.ppo.v1.trainer_base.PPOTrainer, never imported here
Batch = Any  # transfer_queue's KVBatchMeta: keys of a step's answers, not their tensors

_OURS: dict[str, Any] = {
    "upstream": "none: our own proof",
    "remove_when": "verl checks the log-probs of its rollout engine",
}
_QUEUE: dict[str, Any] = {**_OURS, **TASK_RUNNER, "release": TRANSFER_QUEUE, "required": False}
ROLLOUT, TRAINER, MASK = "rollout_log_probs", "old_log_probs", "response_mask"
"""Fields of verl's transfer queue, each jagged ``[answers, tokens of the answer]``."""


@dataclass
class StepCheck:
    """The check of one step, open while verl computes its old log-probs."""

    trainer: Trainer
    batch: Batch
    metrics: dict[str, Any]
    mask: torch.Tensor | None = None
    """The answers' mask; None until verl has read its batch."""
    seconds: float = 0.0
    """Time that the check has taken. Reads and writes are verl's own."""

    def __post_init__(self) -> None:
        config = self.trainer.config
        correction = config.algorithm.get("rollout_correction", None)
        self.bypass = bool(correction and correction.get("bypass_mode", False))
        """Whether verl takes the rollout's log-probs for the old ones: the trainer has none of its own yet."""
        self.asked = bool(config.actor_rollout_ref.rollout.calculate_log_probs)
        """Whether verl asks vLLM for log-probs."""
        self.padding = [tag.get("is_padding", False) for tag in self.batch.tags]
        """Whether verl has added the row to make the batch divisible: it is no answer."""
        keys = [key for key, padding in zip(self.batch.keys, self.padding, strict=True) if not padding]
        self.answers: Batch = SimpleNamespace(keys=keys, partition_id=self.batch.partition_id)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of the block."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def without_padding(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of the answers, jagged too."""
        if not any(self.padding):
            return rows
        import torch

        kept = [row for row, padding in zip(rows.unbind(), self.padding, strict=True) if not padding]
        return torch.nested.as_nested_tensor(kept, layout=torch.jagged)

    def count(self, log_probs: torch.Tensor, engine: str) -> NonFinite:
        """Count the log-probs of these answers that are not finite, into the metrics."""
        from fp16_patch.rollout_health.non_finite import find_in_answers

        assert self.mask is not None, "verl writes log-probs before it reads the mask"
        found = find_in_answers(log_probs.values(), self.mask.values(), log_probs.offsets())
        self.metrics |= found.metrics(engine)
        return found


@wrap(
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_old_log_prob",
    name="rollout-health",
    fingerprint="9dc843b0b42230f3",
    reason="a policy that overflows in vLLM returns NaN log-probs, and verl trains on them without a word; the source "
    "is pinned because the check looks at what it reads and writes",
    **_OURS,
    **TASK_RUNNER,
)
def check_step(original: Any, self: Trainer, batch: Batch, metrics: dict[str, Any]) -> Any:
    """Check the rollout of this step, and count the trainer's own log-probs that are not finite."""
    check = StepCheck(self, batch, metrics)
    with ExitStack() as stack:
        with check.timed():
            if not getattr(self, "local_trigger_step", 0):  # else a later update of the same step
                clear_masked()
            stack.enter_context(opened(check_what_is_read, check))
            stack.enter_context(opened(check_what_is_written, check))
            counts = ask_counts(self)  # answered while the trainer computes
        batch = original(self, batch, metrics)
    assert check.mask is not None, "verl has not read the log-probs through its transfer queue"
    with check.timed():
        missed, found = attached(self, EngineCounts).take(), counts.wait()
        check_sampling(self, missed.requests + found.requests, metrics)
        if not check.asked:
            check_logits(check, missed.rows + found.rows)
    metrics["timing_s/rollout_health"] = check.seconds
    return batch


@scoped(
    "transfer_queue:kv_batch_get",
    name="rollout-health-read",
    reason="verl reads the rollout's log-probs here; to fetch them once more took longer than all else in the check",
    parameters=("keys", "partition_id", "select_fields"),
    **_QUEUE,
)
def check_what_is_read(get: Callable[..., Any], check: StepCheck) -> Callable[..., Any]:
    """Check the log-probs of the rollout in verl's first read of its batch, and mask answers before verl sees them."""

    def read(keys: list[str], partition_id: str, select_fields: Sequence[str]) -> Any:
        if check.mask is not None or keys != check.batch.keys:  # verl's later reads, and our own
            return get(keys, partition_id, select_fields)
        fields = [*select_fields, *({MASK} - {*select_fields})]  # bypass mode does not read the mask
        data = get(keys, partition_id, fields)
        with check.timed():
            check.mask = check.without_padding(data[MASK])
            if check.asked and check_log_probs(check, check.without_padding(data[ROLLOUT])):
                data = get(keys, partition_id, fields)
                check.mask = check.without_padding(data[MASK])
        return data.select(*select_fields)

    return read


@scoped(
    "transfer_queue:kv_batch_put",
    name="rollout-health-written",
    reason="verl writes the trainer's log-probs here; the check counts those that are not finite",
    parameters=("keys", "partition_id", "fields"),
    **_QUEUE,
)
def check_what_is_written(put: Callable[..., Any], check: StepCheck) -> Callable[..., Any]:
    """Count the trainer's log-probs that are not finite before verl writes them."""

    def write(keys: list[str], partition_id: str, fields: Any, **kwargs: Any) -> Any:
        if TRAINER in fields.keys() and not check.bypass:  # noqa: SIM118 (a TensorDict refuses "in")
            with check.timed():
                check.count(check.without_padding(fields[TRAINER]), "trainer")
        return put(keys, partition_id, fields, **kwargs)

    return write


def check_log_probs(check: StepCheck, log_probs: torch.Tensor) -> bool:
    """Count the rollout's log-probs that are not finite, and mask their answers where the flag says so.

    Returns:
        Whether an answer was masked.

    Raises:
        Fp16PatchError: The run must stop.
    """
    from fp16_patch.rollout_health.overflow_policy import answers_to_mask, check_lengths

    assert check.mask is not None
    step, precision, masked = check.trainer.global_steps, Precision.current(), 0
    given, tokens = (rows.offsets().diff().tolist() for rows in (log_probs, check.mask))
    check_lengths(given, tokens, step)
    found = check.count(log_probs, "rollout")
    if found.first is not None:
        try:
            affected = answers_to_mask(found, _responses(check.answers), step, precision)
        except Fp16PatchError as error:
            raise add_trace(error, check.trainer, check.answers, found.first) from None
        masked = mask_answers(check.answers, affected)
    if precision.trace_rollout == step:
        trace_step(check.trainer, check.answers, found.first)
    if precision.rollout_overflow == "mask":
        check.metrics["rollout/masked_answers"] = float(masked)
    return masked > 0


def check_logits(check: StepCheck, rows: int) -> None:
    """Report the rows of vLLM's logits that were not finite, where nobody asks vLLM for log-probs.

    Raises:
        Fp16PatchError: There is one: no answer can be named, so none can be masked.
    """
    from fp16_patch.rollout_health.overflow_policy import refuse_logits

    check.metrics["rollout/non_finite_logits"] = float(rows)
    step, precision = check.trainer.global_steps, Precision.current()
    if rows:
        raise add_trace(refuse_logits(rows, step, precision), check.trainer, check.answers, None)
    if precision.trace_rollout == step:
        trace_step(check.trainer, check.answers, None)


def check_sampling(trainer: Trainer, requests: Counter[tuple[str, str]], metrics: dict[str, Any]) -> None:
    """Report the requests of this step that sampled from another distribution than the trainer computes.

    Raises:
        Fp16PatchError: There is one, something reads its log-probs, and the flag does not accept it.
    """
    from fp16_patch.frameworks.verl.config.sampling import accepted_requests, log_probs_are_read, whole_distribution

    changed = sampling.changed_requests(requests, accepted_requests(trainer.config))
    metrics |= sampling.metrics(changed)
    if changed and log_probs_are_read(trainer.config) and not Precision.current().allow_truncated_sampling:
        temperature, whole = trainer.config.actor_rollout_ref.rollout.temperature, whole_distribution(trainer.config)
        raise sampling.refuse_changed(changed, trainer.global_steps, temperature, whole)


def _responses(batch: Batch) -> Sequence[torch.Tensor]:
    """Return the sampled token ids of each answer."""
    import transfer_queue

    data = transfer_queue.kv_batch_get(batch.keys, batch.partition_id, ["responses"])
    rows: Sequence[torch.Tensor] = data["responses"].unbind()
    return rows
