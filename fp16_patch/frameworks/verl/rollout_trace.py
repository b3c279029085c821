# SPDX-License-Identifier: Apache-2.0
"""Run answers through verl's vLLM once more to find the module that overflows first. Runs in verl's task runner."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from fp16_patch.engines.ray.actor_calls import SECONDS
from fp16_patch.engines.vllm import rollout_trace
from fp16_patch.engines.vllm.rollout_trace import NotFinite, Prompts, TracedAnswers, TracedEngine, one_token
from fp16_patch.engines.vllm.trace import RolloutTrace
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.padded_batch import PaddedBatch

Trainer = Any  # verl.trainer.ppo.v1.trainer_base.PPOTrainer, never imported here
Batch = Any  # transfer_queue's KVBatchMeta, or a PaddedBatch

EAGER = "actor_rollout_ref.rollout.enforce_eager"


def add_trace(error: Fp16PatchError, trainer: Trainer, batch: Batch, first: NotFinite) -> Fp16PatchError:
    """Return ``error``, of a rollout overflow, with the module where it began, or with why that is not known.

    Without ``first``, any answer may be affected.
    """
    answers = TracedAnswers.affected(trainer.global_steps, first, len(batch.keys))
    return rollout_trace.add_trace(error, answers, partial(_trace, trainer, batch, answers.lengths))


def trace_step(trainer: Trainer, batch: Batch, first: NotFinite) -> None:
    """Trace one answer of this step because ``fp16_patch.trace_rollout`` says so: an affected one if there is one."""
    answers = TracedAnswers.one(trainer.global_steps, first)
    rollout_trace.trace_step(answers, partial(_trace, trainer, batch, answers.lengths, sleep=True))


def _trace(
    trainer: Trainer, batch: Batch, lengths: Mapping[int, int | None], sleep: bool = False
) -> tuple[RolloutTrace, Prompts]:
    """Run the answers of these ``lengths`` through the first vLLM server. Return its trace and the prompts."""
    prompts = _token_ids(batch, lengths)
    with _awake(trainer, sleep):
        return _engine(trainer).trace(prompts), prompts


def _token_ids(batch: Batch, lengths: Mapping[int, int | None]) -> list[list[int]]:
    """Return each prompt and its answer up to that length, or but for its last token: what decided the next one."""
    texts = batch.prompts_and_answers(lengths) if isinstance(batch, PaddedBatch) else _from_queue(batch, lengths)
    return [
        [*prompt.tolist(), *answer.tolist()[: -1 if length is None else length]]
        for (prompt, answer), length in zip(texts, lengths.values(), strict=True)
    ]


def _from_queue(batch: Batch, rows: Iterable[int]) -> list[tuple[Any, Any]]:
    """Return the token ids of these prompts and of their answers."""
    import transfer_queue

    keys = [batch.keys[row] for row in rows]
    fields = ["prompts", "responses"]
    data = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
    return list(zip(data["prompts"].unbind(), data["responses"].unbind(), strict=True))


def _engine(trainer: Trainer) -> TracedEngine:
    """Return the first vLLM server."""
    import ray

    server = next(iter(trainer.llm_server_manager.get_replicas())).servers[0]
    sampling = one_token(trainer.config.actor_rollout_ref.rollout.temperature)

    def ask(method: str) -> list[Any]:
        replies: list[Any] = ray.get(server.collective_rpc.remote(method), timeout=SECONDS)
        return replies

    def generate(prompts: Prompts) -> None:
        calls = [
            server.generate.remote(prompt_ids=ids, sampling_params=dict(sampling), request_id=uuid.uuid4().hex)
            for ids in prompts
        ]
        ray.get(calls, timeout=SECONDS)

    return TracedEngine(ask, generate, enforce_eager=f"{EAGER}=True")


@contextmanager
def _awake(trainer: Trainer, sleep: bool) -> Iterator[None]:
    """Give vLLM its weights back, which verl has dropped by the time a step computes log-probs.

    With ``sleep``, drop them again afterwards, for a run that goes on.
    """
    weights, manager = trainer.config.actor_rollout_ref.rollout.free_cache_engine, trainer.checkpoint_manager
    settings = trainer.config.trainer
    paused = settings.get("use_v1", True) and settings.v1.trainer_mode == "colocate_async"
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
