# SPDX-License-Identifier: Apache-2.0
"""Sample answers with vLLM. Each problem has its own seed, so its samples do not depend on other problems."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.model_folder import cached_config
from fp16_patch.lab.data.problem import Problem
from fp16_patch.lab.data.sample_store import Sampled, SampleStore
from fp16_patch.lab.data.settings import Sampling
from fp16_patch.lab.duration import duration


def seed_of(problem: Problem, seed: int) -> int:
    """Return the seed of the first answer to ``problem``; vLLM adds 1 for each further answer."""
    return int.from_bytes(hashlib.sha256(f"{seed} {problem.key}".encode()).digest()[:4], "big") >> 1


class Sampler:
    """Hold vLLM with a loaded model. ``options`` are further arguments of ``vllm.LLM``.

    Raises:
        Fp16PatchError: If the problems do not fit the model, or vLLM cannot load it.
    """

    def __init__(self, sampling: Sampling, problems: Sequence[Problem], options: Mapping[str, object]) -> None:
        _prepare_environment()
        from transformers import AutoTokenizer
        from vllm import LLM

        self._sampling = sampling
        path = _local_path(sampling.model)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        if self._tokenizer.chat_template is None:
            raise Fp16PatchError(
                f"the tokenizer of {sampling.model} has no chat template, which verl and OpenRLHF would apply",
                code="chat-template-missing",
                next_step="give a copy of the model with a chat_template.jinja in its folder",
            )
        longest = max(len(self._tokens(problem)) for problem in problems)
        try:
            self._llm = LLM(
                model=path,
                dtype=sampling.dtype,
                seed=sampling.seed,
                tensor_parallel_size=sampling.tensor_parallel_size,
                max_model_len=longest + sampling.max_tokens,
                **options,
            )
        except Exception as error:  # of many kinds, most of them about memory or lengths
            raise Fp16PatchError(
                f"vLLM cannot start with {sampling.model} in {sampling.dtype}, prompts of up to {longest} tokens and "
                f"--max-tokens {sampling.max_tokens}: {' '.join(str(error).split())[:600]}",
                code="vllm-start-failed",
                next_step="change the setting that the message names; pass arguments of vllm.LLM as --vllm KEY=VALUE",
            ) from error

    def sample(self, problems: Sequence[Problem]) -> list[Sampled]:
        """Sample the answers to ``problems``, and return them in the order of ``problems``."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                n=self._sampling.samples,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                max_tokens=self._sampling.max_tokens,
                seed=seed_of(problem, self._sampling.seed),
            )
            for problem in problems
        ]
        prompts = [{"prompt_token_ids": self._tokens(problem)} for problem in problems]
        requests = self._llm.generate(prompts, parameters, use_tqdm=sys.stderr.isatty())
        return [
            Sampled(
                problem.key,
                tuple(answer.text for answer in request.outputs),
                tuple(len(answer.token_ids) for answer in request.outputs),
                sum(answer.finish_reason == "length" for answer in request.outputs),
            )
            for problem, request in zip(problems, requests, strict=True)
        ]

    def _tokens(self, problem: Problem) -> list[int]:
        text = self._tokenizer.apply_chat_template(problem.messages, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


def sample_missing(
    sampling: Sampling,
    problems: Sequence[Problem],
    answers: SampleStore,
    batch: int,
    options: Mapping[str, object],
    say: Callable[[str], None],
) -> None:
    """Sample the problems that ``answers`` does not hold, and append them, ``batch`` problems at a time."""
    done = {sampled.key for sampled in answers}
    left = total = sum(problem.key not in done for problem in problems)
    if left < len(problems):
        say(f"{len(problems) - left} of {len(problems)} problems are already sampled")
    if not left:
        return
    say(f"loading {sampling.model}")
    sampler = Sampler(sampling, problems, options)
    started, tokens = time.monotonic(), 0
    # Batches are slices of the dataset, not of what is left: after a kill they hold the same problems.
    for start in range(0, len(problems), batch):
        if not (missing := [problem for problem in problems[start : start + batch] if problem.key not in done]):
            continue
        sampled = sampler.sample(missing)
        answers.record_options(options)
        answers.append(sampled)
        left -= len(missing)
        tokens += sum(sum(one.tokens) for one in sampled)
        seconds = time.monotonic() - started
        say(
            f"sampled {len(problems) - left} of {len(problems)} problems {sampling.samples} times: "
            f"{tokens / seconds:.0f} tokens a second, about {duration(seconds / (total - left) * left)} left"
        )


def revision_of(model: str) -> str | None:
    """Return the cached revision of a model on the hub; None for a folder."""
    config = cached_config(model)
    return None if config is None else config.parent.name


def _prepare_environment() -> None:
    """Set the platform and vLLM's environment. Call it before vLLM is imported."""
    from fp16_patch import platforms

    platforms.activate()
    # One process: the order of requests does not depend on timing, and a kill leaves no engine holding the GPU.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def _local_path(model: str) -> str:
    """Return the model's folder, its folder in the hub's cache, or the hub id if vLLM has to download it."""
    folder, config = Path(model).expanduser(), cached_config(model)
    if config is not None and any(config.parent.glob("*.safetensors")):
        return str(config.parent)
    return str(folder) if folder.exists() else model
