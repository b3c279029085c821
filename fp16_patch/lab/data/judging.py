# SPDX-License-Identifier: Apache-2.0
"""Score sampled answers and select the problems by their solve rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fp16_patch.lab.data import scoring
from fp16_patch.lab.data.problem import Problem
from fp16_patch.lab.data.sample_store import SampleStore
from fp16_patch.lab.data.selection import Selection

_LOG_INTERVAL_S = 15


@dataclass
class AnswerLengths:
    """Count the scored answers, their tokens, and the answers cut off at the token limit."""

    answers: int = 0
    answer_tokens: int = 0
    answers_cut_off: int = 0


def judge(
    reward: Path,
    problems: Sequence[Problem],
    answers: SampleStore,
    keep: tuple[float, float],
    say: Callable[[str], None],
) -> tuple[Selection[Problem], AnswerLengths]:
    """Score the answers to ``problems``, all of which were sampled, and select problems.

    Args:
        reward: The reward's file.
        problems: The problems to score; answers to other problems are ignored.
        answers: The sampled answers.
        keep: Lowest and highest solve rate to keep, both included.
        say: Called with each progress line.

    Returns:
        The selection and the lengths of the answers.
    """
    by_key = {problem.key: problem for problem in problems}
    samples: dict[Problem, int] = {}
    lengths = AnswerLengths()

    def cases() -> Iterator[scoring.ScoringCase]:
        for sampled in answers:
            if (problem := by_key.get(sampled.key)) is None or problem in samples:
                continue
            samples[problem] = len(sampled.answers)
            lengths.answers += len(sampled.answers)
            lengths.answer_tokens += sum(sampled.tokens)
            lengths.answers_cut_off += sampled.cut_off
            yield scoring.ScoringCase(problem.source, problem.answer, sampled.answers)

    say(f"judging the answers by {reward.name}")
    last_log = time.monotonic()
    solved = []
    for count in scoring.count_solved(reward, cases()):
        solved.append(count)
        if time.monotonic() - last_log > _LOG_INTERVAL_S:
            last_log = time.monotonic()
            say(f"judged the answers to {len(solved)} of {len(problems)} problems")
    right = dict(zip(samples, solved, strict=True))
    selection: Selection[Problem] = Selection(keep)
    for problem in problems:
        selection.add(problem, right[problem], samples[problem])
    return selection, lengths
