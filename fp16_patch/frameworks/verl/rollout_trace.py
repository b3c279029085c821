# SPDX-License-Identifier: Apache-2.0
"""Run answers through vLLM once more, and report which of its modules overflows first. Runs in verl's task runner."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fp16_patch.engines.ray.actor_calls import SECONDS
from fp16_patch.engines.vllm.trace import TRACE_START, TRACE_TAKE, RolloutTrace, read_traces
from fp16_patch.errors import Fp16PatchError
from fp16_patch.log import logger
from fp16_patch.precision import reports_folder

Trainer = Any  # verl.trainer.ppo.v1.trainer_base.PPOTrainer, never imported here
Batch = Any  # transfer_queue's KVBatchMeta

STEM = "rollout_overflow"
"""Name of the report of an overflow, without its extension."""
EAGER = "actor_rollout_ref.rollout.enforce_eager"
NOT_EAGER = f"vLLM is compiled or uses CUDA graphs, where module hooks do not fire; run again with {EAGER}=True"


def add_trace(error: Fp16PatchError, trainer: Trainer, batch: Batch, first: tuple[int, int] | None) -> Fp16PatchError:
    """Return ``error``, of a rollout overflow, with the module where it began, or with why that is not known.

    ``first`` is the answer and the position of the first log-prob that is not finite; None: any answer may be affected.
    """
    rows = range(len(batch.keys)) if first is None else [first[0]]
    lengths = dict.fromkeys(rows, None if first is None else first[1])
    try:
        found = _trace_and_save(trainer, batch, lengths, STEM)
    except Exception as cause:  # the overflow is what stops the run, whatever happens to its trace
        found = _without_trace(cause)
    return Fp16PatchError(
        f"{error.what}; {found}", code="rollout-overflow", allowed=error.allowed, next_step=error.next_step
    )


def trace_step(trainer: Trainer, batch: Batch, first: tuple[int, int] | None) -> None:
    """Trace one answer of this step because ``fp16_patch.trace_rollout`` says so: an affected one if there is one."""
    row, length = first or (0, None)
    stem = f"trace_of_rollout_{trainer.global_steps}"
    try:
        found = _trace_and_save(trainer, batch, {row: length}, stem, sleep=True)
    except Exception as cause:  # a trace must not end a run that is well
        found = _without_trace(cause)
    logger.info("step %s: %s", trainer.global_steps, found)


def _without_trace(cause: Exception) -> str:
    """Return why there is no trace; an error that Ray brings along has a traceback before its message."""
    return f"no trace of vLLM's modules: {(str(cause).strip() or type(cause).__name__).splitlines()[-1]}"


def _trace_and_save(
    trainer: Trainer, batch: Batch, lengths: Mapping[int, int | None], stem: str, sleep: bool = False
) -> str:
    """Trace these answers and write the report. Return one sentence that names its path."""
    from fp16_patch.engines.vllm.trace_report import save, summarize

    texts = _token_ids(batch, lengths)
    trace = _trace(trainer, texts, sleep)
    facts = {
        "step": trainer.global_steps,
        "answers": len(texts),
        "answer": min(lengths),
        "position": lengths[min(lengths)],
        "tokens": sum(map(len, texts)),
    }
    path = save(trace, facts, reports_folder(), stem)
    return f"{summarize(trace)}; every module: {path}"


def _token_ids(batch: Batch, lengths: Mapping[int, int | None]) -> list[list[int]]:
    """Return each prompt and its answer up to that length, or but for its last token: what decided the next one."""
    import transfer_queue

    keys = [batch.keys[row] for row in lengths]
    fields = ["prompts", "responses"]
    data = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
    pairs = zip(data["prompts"].unbind(), data["responses"].unbind(), lengths.values(), strict=True)
    return [
        [*prompt.tolist(), *answer.tolist()[: -1 if length is None else length]] for prompt, answer, length in pairs
    ]


def _trace(trainer: Trainer, texts: list[list[int]], sleep: bool) -> RolloutTrace:
    """Run ``texts`` through the first vLLM server, which has the weights of every other, and return its trace.

    Raises:
        RuntimeError: No module could be traced.
    """
    import ray

    server = next(iter(trainer.llm_server_manager.get_replicas())).servers[0]

    def ask(method: str) -> list[Any]:
        replies: list[Any] = ray.get(server.collective_rpc.remote(method), timeout=SECONDS)
        return replies

    with _awake(trainer, sleep):
        try:
            if not all(ask(TRACE_START)):
                raise RuntimeError(NOT_EAGER)
            # One token, and nothing from the prefix cache: every position goes through every module again.
            sampling = {"max_tokens": 1, "skip_reading_prefix_cache": True}
            sampling["temperature"] = trainer.config.actor_rollout_ref.rollout.temperature
            calls = [
                server.generate.remote(prompt_ids=ids, sampling_params=dict(sampling), request_id=uuid.uuid4().hex)
                for ids in texts
            ]
            ray.get(calls, timeout=SECONDS)
        finally:
            trace = read_traces(ask(TRACE_TAKE))
    if not trace.rows:
        raise RuntimeError(NOT_EAGER)
    return trace


@contextmanager
def _awake(trainer: Trainer, sleep: bool) -> Iterator[None]:
    """Give vLLM its weights back, which verl has dropped by the time a step computes log-probs.

    With ``sleep``, drop them again afterwards, for a run that goes on.
    """
    weights, manager = trainer.config.actor_rollout_ref.rollout.free_cache_engine, trainer.checkpoint_manager
    paused = trainer.config.trainer.v1.trainer_mode == "colocate_async"
    if weights:
        manager.update_weights(trainer.global_steps - 1)  # this step's update has not happened yet
    if paused:
        manager.resume_generation_replicas()
    try:
        yield
    finally:
        if sleep and paused:
            manager.abort_replicas()
        if sleep and weights:
            manager.sleep_replicas()
