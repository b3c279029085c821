# SPDX-License-Identifier: Apache-2.0
"""Run answers through vLLM once more, and report which of its modules overflows first.

Runs in the process that drives training. A framework says how to reach vLLM; the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fp16_patch.engines.vllm.trace import TRACE_START, TRACE_TAKE, RolloutTrace, read_traces
from fp16_patch.errors import Fp16PatchError
from fp16_patch.log import logger
from fp16_patch.precision import reports_folder

STEM = "rollout_overflow"
"""Name of the report of an overflow, without its extension."""

NotFinite = tuple[int, int] | None
"""The answer and the position of the first log-prob that is not finite, or None."""
Prompts = Sequence[list[int]]
Trace = Callable[[], tuple[RolloutTrace, Prompts]]
"""Trace answers, and return the prompts that they went through vLLM as."""


@dataclass(frozen=True)
class TracedEngine:
    """How a framework reaches one vLLM engine. Each engine has the weights of every other."""

    ask: Callable[[str], Sequence[Any]]
    """Call the method of that name in every worker of the engine, and return the replies."""
    generate: Callable[[Prompts], None]
    """Generate one token after each of these prompts, with :func:`one_token`, and wait for it."""
    enforce_eager: str
    """The framework's setting that makes module hooks fire, as the user writes it."""

    def trace(self, prompts: Prompts) -> RolloutTrace:
        """Run ``prompts`` through the engine and return what its modules did.

        Raises:
            RuntimeError: No module could be traced.
        """
        not_eager = (
            f"vLLM is compiled or uses CUDA graphs, where module hooks do not fire; run again with {self.enforce_eager}"
        )
        try:
            if not all(self.ask(TRACE_START)):
                raise RuntimeError(not_eager)
            self.generate(prompts)
        finally:
            trace = read_traces(self.ask(TRACE_TAKE))
        if not trace.rows:
            raise RuntimeError(not_eager)
        return trace


@dataclass(frozen=True)
class TracedAnswers:
    """The answers of a step that go through vLLM once more."""

    step: int
    lengths: Mapping[int, int | None]
    """Answer -> the sampled tokens of it to take; None: all but the last. They decided the token after them."""

    @classmethod
    def affected(cls, step: int, first: NotFinite, answers: int) -> TracedAnswers:
        """Return the answer of the first log-prob that is not finite; without one, all answers may be affected."""
        return cls(step, dict.fromkeys(range(answers)) if first is None else dict([first]))

    @classmethod
    def one(cls, step: int, first: NotFinite) -> TracedAnswers:
        """Return the affected answer, or the first one."""
        return cls(step, dict([first or (0, None)]))


def one_token(temperature: float) -> dict[str, Any]:
    """Return sampling parameters of a request whose every position goes through every module again."""
    return {"max_tokens": 1, "skip_reading_prefix_cache": True, "temperature": temperature}


def add_trace(error: Fp16PatchError, answers: TracedAnswers, trace: Trace) -> Fp16PatchError:
    """Return ``error``, of a rollout overflow, with the module where it began, or with why that is not known."""
    try:
        found = _save(answers, trace, STEM)
    except Exception as cause:  # the overflow is what stops the run, whatever happens to its trace
        found = without_trace(cause)
    return Fp16PatchError(
        f"{error.what}; {found}", code="rollout-overflow", allowed=error.allowed, next_step=error.next_step
    )


def trace_step(answers: TracedAnswers, trace: Trace) -> None:
    """Trace one answer of this step because ``fp16_patch.trace_rollout`` says so, and log what was found."""
    try:
        found = _save(answers, trace, f"trace_of_rollout_{answers.step}")
    except Exception as cause:  # a trace must not end a run that is well
        found = without_trace(cause)
    logger.info("step %s: %s", answers.step, found)


def without_trace(cause: Exception) -> str:
    """Return why there is no trace; an error that Ray brings along has a traceback before its message."""
    return f"no trace of vLLM's modules: {(str(cause).strip() or type(cause).__name__).splitlines()[-1]}"


def _save(answers: TracedAnswers, trace: Trace, stem: str) -> str:
    """Trace these answers and write the report. Return one sentence that names its path."""
    from fp16_patch.engines.vllm.trace_report import save, summarize

    found, prompts = trace()
    first = min(answers.lengths)
    facts = {
        "step": answers.step,
        "answers": len(prompts),
        "answer": first,
        "position": answers.lengths[first],
        "tokens": sum(map(len, prompts)),
    }
    path = save(found, facts, reports_folder(), stem)
    return f"{summarize(found)}; every module: {path}"
