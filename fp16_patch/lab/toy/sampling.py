# SPDX-License-Identifier: Apache-2.0
"""Sample answers from the toy policy and count the right ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fp16_patch.lab.rewards.toy_reward import compute_score
from fp16_patch.lab.toy.task import DATA_SOURCE, Problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def sample(
    model: PreTrainedModel, prompts: torch.Tensor, *, samples: int, max_tokens: int, rng: torch.Generator
) -> torch.Tensor:
    """Sample ``samples`` answers to each prompt at temperature 1.

    Args:
        model: The policy.
        prompts: int64 ``[prompts, length]``, no padding.
        samples: Number of answers per prompt.
        max_tokens: Limit of an answer, in tokens.
        rng: Source of randomness.

    Returns:
        int64 ``[prompts * samples, <= max_tokens]``; the answers to one prompt are adjacent, and padded after their
        end of sequence.
    """
    import torch
    from transformers import DynamicCache

    end, pad = model.config.eos_token_id, model.config.pad_token_id
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        logits = model(input_ids=prompts, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        cache.batch_repeat_interleave(samples)
        logits = logits.repeat_interleave(samples, dim=0)
        ended = torch.zeros(len(logits), dtype=torch.bool)
        columns: list[torch.Tensor] = []
        while True:
            token = torch.multinomial(logits.softmax(-1), 1, generator=rng).squeeze(1).masked_fill(ended, pad)
            columns.append(token)
            ended |= token == end
            if len(columns) == max_tokens or bool(ended.all()):
                return torch.stack(columns, dim=1)
            logits = model(input_ids=token[:, None], past_key_values=cache).logits[:, -1]


def solved_counts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    *,
    samples: int,
    max_tokens: int,
    rng: torch.Generator,
) -> list[int]:
    """Return how many of ``samples`` answers solve each problem. All prompts must have the same length."""
    prompts = tokenizer([problem.prompt for problem in problems], return_tensors="pt").input_ids
    was_training = model.training
    model.eval()
    answers = sample(model, prompts, samples=samples, max_tokens=max_tokens, rng=rng)
    model.train(was_training)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    scores = [compute_score(DATA_SOURCE, text, problems[i // samples].answer) for i, text in enumerate(texts)]
    return [int(sum(scores[i : i + samples])) for i in range(0, len(scores), samples)]
