# SPDX-License-Identifier: Apache-2.0
"""Keep the problems within reach: neither solved already nor hopeless. The filter of the paper's sanity test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fp16_patch.errors import Fp16PatchError
from fp16_patch.toy.sampling import solved_counts
from fp16_patch.toy.task import Problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

AT_A_TIME = 64


@dataclass
class Selection:
    """Solve rates (0 to 1) of every problem that was tried, and the problems kept, both in the order of trial."""

    rates: dict[Problem, float] = field(default_factory=dict)
    kept: list[Problem] = field(default_factory=list)

    def mean_rate(self, problems: list[Problem] | None = None) -> float:
        rates = [self.rates[p] for p in (self.rates if problems is None else problems)]
        return round(sum(rates) / len(rates), 4)

    def histogram(self) -> list[int]:
        """How many of the problems tried have a solve rate in [0, 0.1), [0.1, 0.2) ... [0.9, 1]."""
        counts = [0] * 10
        for rate in self.rates.values():
            counts[min(int(10 * rate), 9)] += 1
        return counts


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
) -> Selection:
    """Try ``candidates`` in turn until ``needed`` of them were solved in a share of ``samples`` within ``keep``.

    Raises ``Fp16PatchError`` when the candidates run out first.
    """
    selection = Selection()
    for start in range(0, len(candidates), AT_A_TIME):
        tried = candidates[start : start + AT_A_TIME]
        counts = solved_counts(model, tokenizer, tried, samples=samples, max_tokens=max_tokens, rng=rng)
        for problem, count in zip(tried, counts, strict=True):
            selection.rates[problem] = count / samples
            if keep[0] <= count / samples <= keep[1]:
                selection.kept.append(problem)
        progress(
            f"sampled {len(selection.rates)} problems {samples} times: {len(selection.kept)} of {needed} within reach"
        )
        if len(selection.kept) >= needed:
            return selection
    raise Fp16PatchError(
        f"only {len(selection.kept)} of {len(candidates)} problems are within the policy's reach",
        allowed=f"at least {needed}, solved in {keep[0]:.0%} to {keep[1]:.0%} of {samples} samples",
        next_step="build the toy world with another seed, or ask for fewer problems",
    )
