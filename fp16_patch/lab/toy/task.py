# SPDX-License-Identifier: Apache-2.0
"""The task: add up a few digits aloud, in any order.

``7+4+9+6+8=`` is answered by a chain of running totals, ``9+6=15+8=23+7=30+4=34``. Every order of the digits is
a right answer, which is what gives the policy entropy at temperature 1 without making its answers wrong.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

LOWEST, HIGHEST = 1, 9

DATA_SOURCE = "fp16_patch/toy"


@dataclass(frozen=True)
class Problem:
    """Digits to add up, in the order in which the prompt names them."""

    digits: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return "+".join(map(str, self.digits)) + "="

    @property
    def answer(self) -> str:
        return str(sum(self.digits))


def draw(count: int, rng: random.Random) -> Problem:
    """A problem of ``count`` digits, each equally likely."""
    return Problem(tuple(rng.randint(LOWEST, HIGHEST) for _ in range(count)))


def distinct_problems(count: int, rng: random.Random) -> list[Problem]:
    """Every choice of ``count`` digits once, shuffled, its digits in a random order.

    No two differ by order alone, so a split of them keeps a problem and its permutations on one side.
    """
    problems = []
    for digits in itertools.combinations_with_replacement(range(LOWEST, HIGHEST + 1), count):
        shuffled = list(digits)
        rng.shuffle(shuffled)
        problems.append(Problem(tuple(shuffled)))
    rng.shuffle(problems)
    return problems


def demonstration(problem: Problem, rng: random.Random) -> str:
    """A right answer to ``problem`` with its working, in a random order of the digits."""
    first, *others = rng.sample(problem.digits, len(problem.digits))
    total, text = first, str(first)
    for digit in others:
        total += digit
        text += f"+{digit}={total}"
    return text


def token_limits(count: int) -> tuple[int, int]:
    """Longest prompt and longest right answer with its end of sequence, in tokens, rounded up to a multiple of 8.

    Five digits: 10 and 22 tokens, limits 16 and 24.
    """
    hardest = Problem((HIGHEST,) * count)
    answer = len(demonstration(hardest, random.Random(0))) + 1
    return _up_to_8(len(hardest.prompt)), _up_to_8(answer)


def _up_to_8(length: int) -> int:
    return -(-length // 8) * 8
