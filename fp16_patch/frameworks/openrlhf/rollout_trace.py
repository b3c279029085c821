# SPDX-License-Identifier: Apache-2.0
"""Run answers through OpenRLHF's vLLM once more to find the module that overflows first. Runs in the controller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from fp16_patch.engines.ray.actor_calls import SECONDS
from fp16_patch.engines.vllm import rollout_trace
from fp16_patch.engines.vllm.rollout_trace import NotFinite, Prompts, TracedAnswers, TracedEngine, one_token
from fp16_patch.engines.vllm.trace import RolloutTrace
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf.rollout import ask_workers

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here
Experience = Any  # openrlhf.trainer.ppo_utils.experience.Experience, never imported here

EAGER = "--vllm.enforce_eager"


def add_trace(
    error: Fp16PatchError, controller: Controller, samples: list[Experience], step: int, first: NotFinite
) -> Fp16PatchError:
    """Return ``error``, of a rollout overflow, with the module where it began, or with why that is not known.

    Without ``first``, any answer may be affected.
    """
    answers = TracedAnswers.affected(step, first, len(samples))
    return rollout_trace.add_trace(error, answers, partial(_trace, controller, samples, answers.lengths))


def trace_step(controller: Controller, samples: list[Experience], step: int, first: NotFinite) -> None:
    """Trace one answer of this step because ``fp16_patch.trace_rollout`` says so: an affected one if there is one."""
    answers = TracedAnswers.one(step, first)
    rollout_trace.trace_step(answers, partial(_trace, controller, samples, answers.lengths))


def _trace(
    controller: Controller, samples: list[Experience], lengths: Mapping[int, int | None]
) -> tuple[RolloutTrace, Prompts]:
    """Run the answers of these ``lengths`` through the first vLLM engine. Return its trace and the prompts."""
    prompts = [token_ids(samples[answer], length) for answer, length in lengths.items()]
    with _alone(controller):
        return _engine(controller).trace(prompts), prompts


def token_ids(sample: Experience, length: int | None) -> list[int]:
    """Return the tokens before sampled token number ``length`` of an answer, or before its last one.

    Several turns are one row: between sampled tokens it holds those of the environment.

    Raises:
        RuntimeError: The prompt has images, which the row of tokens does not hold.
    """
    if any(sample.images):
        raise RuntimeError("an answer to a prompt with images is not traced")
    sampled = sample.action_mask[0].nonzero().flatten()  # position p of the mask is about token p + 1
    last = int(sampled[-1 if length is None else length]) if len(sampled) else 0
    ids: list[int] = sample.sequences[0, : last + 1].tolist()
    return ids


def _engine(controller: Controller) -> TracedEngine:
    """Return the first vLLM actor."""
    import ray
    from vllm import SamplingParams

    server = controller.vllm_engines[0]
    sampling = SamplingParams(**one_token(controller.args.rollout.temperature))

    def ask(method: str) -> list[Any]:
        replies: list[Any] = ray.get(server.__ray_call__.remote(ask_workers, method), timeout=SECONDS)
        return replies

    def generate(prompts: Prompts) -> None:
        ray.get([server.generate.remote(ids, sampling) for ids in prompts], timeout=SECONDS)

    return TracedEngine(ask, generate, enforce_eager=EAGER)


@contextmanager
def _alone(controller: Controller) -> Iterator[None]:
    """Keep the async trainer's sampler out of vLLM for the trace, and wake vLLM up where OpenRLHF lets it sleep.

    Raises:
        RuntimeError: The sampler cannot be kept out.
    """
    import ray

    lock = getattr(controller, "vllm_lock", None)
    if lock is not None and controller.args.train.partial_rollout_enable:
        raise RuntimeError("vLLM samples other answers meanwhile; run again without --train.partial_rollout_enable")
    server, sleeps = controller.vllm_engines[0], controller.args.vllm.enable_sleep
    if lock is not None:
        ray.get(lock.acquire.remote())
    try:
        if sleeps:
            ray.get(server.wake_up.remote(), timeout=SECONDS)
        yield
    finally:
        if sleeps:
            ray.get(server.sleep.remote(), timeout=SECONDS)
        if lock is not None:
            ray.get(lock.release.remote())
