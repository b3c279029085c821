# SPDX-License-Identifier: Apache-2.0
"""The verifier, for verl's ``custom_reward_function.path`` and OpenRLHF's ``--reward.remote_url``.

Both load this file by itself, so it imports nothing of this package.
"""

from __future__ import annotations

from typing import Any

NOT_TEXT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The tokenizer's special tokens: verl leaves them out of an answer before it asks, OpenRLHF does not."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
) -> float:
    """1.0 if what stands behind the last ``=`` is the ground truth, character for character, else 0.0.

    The prompt ends with a ``=``, so an answer without working counts too: as in the paper's mathematics problems,
    only the result is verified.
    """
    return float(solution_str.rpartition("=")[2] == ground_truth)


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """The same for OpenRLHF, whose queries are the prompt, the answer and the special tokens, in one text."""
    import torch

    answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    for token in NOT_TEXT:
        answers = [answer.replace(token, "") for answer in answers]
    scores = [compute_score("", answer, label) for answer, label in zip(answers, labels, strict=True)]
    return {"rewards": torch.tensor(scores), "scores": torch.tensor(scores), "extra_logs": {}}
