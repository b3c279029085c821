# SPDX-License-Identifier: Apache-2.0
"""Sample problems from the policy until enough of them are within its reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.selection import Selection
from fp16_patch.lab.toy.sampling import solved_counts
from fp16_patch.lab.toy.task import Problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BATCH_SIZE = 64


def select(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    candidates: list[Problem],
    *,
    needed: int,
    samples: int,
    keep: tuple[float, float],
    max_tokens: int,
    rng: torch.Generator,
    progress: Callable[[str], None],
) -> Selection[Problem]:
    """Try ``candidates`` in turn until ``needed`` of them have a solve rate within ``keep``.

    Raises:
        Fp16PatchError: If the candidates run out first.
    """
    selection: Selection[Problem] = Selection(keep)
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
        allowed=f"at least {needed}, solved in {keep[0]:.0%} to {keep[1]:.0%} of {samples} samples",
        next_step="build the toy task with another seed, or with fewer problems",
    )
