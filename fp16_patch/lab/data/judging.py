# SPDX-License-Identifier: Apache-2.0
"""From sampled answers to solve rates and the problems within reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fp16_patch.lab.data import scoring
from fp16_patch.lab.data.answers import Answers
from fp16_patch.lab.data.problem import Problem
from fp16_patch.lab.data.selection import Selection

_EVERY_S = 15


@dataclass
class Lengths:
    """Of the answers judged: their number, their tokens, and how many of them were cut off at the limit."""

    answers: int = 0
    answer_tokens: int = 0
    answers_cut_off: int = 0


def judge(
    reward: Path, problems: Sequence[Problem], answers: Answers, keep: tuple[float, float], say: Callable[[str], None]
) -> tuple[Selection[Problem], Lengths]:
    """Judge the ``answers`` to ``problems``, all of which were sampled; other problems' are left alone."""
    by_key = {problem.key: problem for problem in problems}
    samples: dict[Problem, int] = {}
    lengths = Lengths()

    def cases() -> Iterator[scoring.Case]:
        for sampled in answers:
            if (problem := by_key.get(sampled.key)) is None or problem in samples:
                continue
            samples[problem] = len(sampled.answers)
            lengths.answers += len(sampled.answers)
            lengths.answer_tokens += sum(sampled.tokens)
            lengths.answers_cut_off += sampled.cut_off
            yield scoring.Case(problem.source, problem.answer, sampled.answers)

    say(f"judging the answers by {reward.name}")
    said = time.monotonic()
    solved = []
    for count in scoring.solved(reward, cases()):
        solved.append(count)
        if time.monotonic() - said > _EVERY_S:
            said = time.monotonic()
            say(f"judged the answers to {len(solved)} of {len(problems)} problems")
    right = dict(zip(samples, solved, strict=True))
    selection: Selection[Problem] = Selection(keep)
    for problem in problems:
        selection.add(problem, right[problem], samples[problem])
    return selection, lengths
