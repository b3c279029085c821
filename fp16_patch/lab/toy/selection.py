# SPDX-License-Identifier: Apache-2.0
"""Sample problems from the policy until enough of them are within its reach."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.selection import Selection
from fp16_patch.lab.toy.sampling import solved_counts
from fp16_patch.lab.toy.settings import Settings
from fp16_patch.lab.toy.task import Problem, distinct_problems, token_limits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BATCH_SIZE = 64


def select(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    seed: int,
    progress: Callable[[str], None],
) -> Selection[Problem]:
    """Try all problems in random order until enough of them have a solve rate in the range of ``settings``.

    Raises:
        Fp16PatchError: If the problems run out first.
    """
    import torch

    low, high = settings.keep_from, settings.keep_to
    needed, samples, max_tokens = settings.val + settings.train, settings.samples, token_limits(settings.digits)[1]
    candidates, rng = distinct_problems(settings.digits, random.Random(seed)), torch.Generator().manual_seed(seed)
    selection: Selection[Problem] = Selection((low, high))
    for start in range(0, len(candidates), BATCH_SIZE):
        tried = candidates[start : start + BATCH_SIZE]
        counts = solved_counts(model, tokenizer, tried, samples=samples, max_tokens=max_tokens, rng=rng)
        for problem, count in zip(tried, counts, strict=True):
            selection.add(problem, count, samples)
        progress(
            f"sampled {len(selection.rates)} problems {samples} times: {len(selection.kept)} of {needed} within reach"
        )
        if len(selection.kept) >= needed:
            return selection
    raise Fp16PatchError(
        f"only {len(selection.kept)} of {len(candidates)} problems are within the policy's reach",
        code="toy-world-failed",
        allowed=f"at least {needed}, solved in {low:.0%} to {high:.0%} of {samples} samples",
        next_step="build the toy task with another seed, or with fewer problems",
    )
