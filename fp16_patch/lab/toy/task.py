# SPDX-License-Identifier: Apache-2.0
"""Define the task: add up a few digits step by step, in any order.

``7+4+9+6+8=`` is answered by a chain of running totals, ``9+6=15+8=23+7=30+4=34``. Every order of the digits is
right, which gives the policy entropy at temperature 1 without wrong answers.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

LOWEST, HIGHEST = 1, 9

DATA_SOURCE = "fp16_patch/toy"


@dataclass(frozen=True)
class Problem:
    """Hold the digits to add up, in the prompt's order."""

    digits: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """Return the question, such as ``7+4=``."""
        return "+".join(map(str, self.digits)) + "="

    @property
    def answer(self) -> str:
        """Return the sum."""
        return str(sum(self.digits))


def draw(count: int, rng: random.Random) -> Problem:
    """Draw a problem of ``count`` uniformly random digits."""
    return Problem(tuple(rng.randint(LOWEST, HIGHEST) for _ in range(count)))


def distinct_problems(count: int, rng: random.Random) -> list[Problem]:
    """Return every multiset of ``count`` digits once, shuffled, its digits in random order.

    No two problems are permutations of each other, so a split keeps a problem and its permutations on one side.
    """
    problems = []
    for digits in itertools.combinations_with_replacement(range(LOWEST, HIGHEST + 1), count):
        shuffled = list(digits)
        rng.shuffle(shuffled)
        problems.append(Problem(tuple(shuffled)))
    rng.shuffle(problems)
    return problems


def demonstration(problem: Problem, rng: random.Random) -> str:
    """Return a right answer to ``problem`` with its steps, in a random order of the digits."""
    first, *others = rng.sample(problem.digits, len(problem.digits))
    total, text = first, str(first)
    for digit in others:
        total += digit
        text += f"+{digit}={total}"
    return text


def token_limits(count: int) -> tuple[int, int]:
    """Return the longest prompt and the longest right answer with its end of sequence, in tokens.

    Both are rounded up to a multiple of 8.

    Five digits: 10 and 22 tokens, limits 16 and 24.
    """
    hardest = Problem((HIGHEST,) * count)
    answer = len(demonstration(hardest, random.Random(0))) + 1
    return _up_to_8(len(hardest.prompt)), _up_to_8(answer)


def _up_to_8(length: int) -> int:
    return -(-length // 8) * 8
