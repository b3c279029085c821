# SPDX-License-Identifier: Apache-2.0
"""One batch of answers on which no two algorithms agree: every clip, cap and mask acts on some of it, not on all."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

GROUPS, EACH = 4, 6
LENGTHS = (3, 4, 7, 9, 14, 24)
DRIFT = (0.0, 0.01, 0.15, 0.3, 0.02, 0.1)
"""By answer of a group, how far the trainer's policy is from the rollout's; the largest pass every cap on an answer."""


@dataclass(frozen=True)
class Answer:
    """Log-probs of its tokens in FP32: ``mu`` the rollout's, ``old`` the trainer's before the step, ``new`` its now."""

    group: int
    reward: float
    mu: torch.Tensor
    old: torch.Tensor
    new: torch.Tensor


def answers() -> list[Answer]:
    """Always the same."""
    draw = random.Random(0)
    found = []
    for group in range(GROUPS):
        for i, length in enumerate(LENGTHS):
            # The last group is solved throughout: no advantage, no gradient.
            reward = 1.0 if group == GROUPS - 1 else float(draw.random() < 0.5)
            mu = [-draw.expovariate(1.0) - 0.5 for _ in range(length)]
            lean = draw.choice((-1, 1)) * DRIFT[i]
            old = [value + lean + draw.gauss(0, 0.1 + DRIFT[i]) for value in mu]
            new = [value + draw.gauss(0, 0.25) for value in old]
            if i == 0:  # between GSPO's two bounds: past the lower in one direction, short of the upper in the other
                new = [value + (3.5e-4 if reward else -3.5e-4) for value in old]
            if i == 3:  # within both
                new = [value + draw.gauss(0, 1e-4) for value in old]
            if i == 4:  # a token past every cap on a token, one past the dual clip, one past that of stock verl only
                old[0] = new[0] = mu[0] + 1.5
                new[1], new[2] = old[1] + 2.6, old[2] + 1.6
            found.append(Answer(group, reward, *(torch.tensor(values) for values in (mu, old, new))))
    return found
