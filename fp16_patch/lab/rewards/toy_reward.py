# SPDX-License-Identifier: Apache-2.0
"""Score the toy task, as verl's ``custom_reward_function.path`` or OpenRLHF's ``--reward.remote_url``.

Both load this file alone, so it imports nothing from this package.
"""

from __future__ import annotations

from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The tokenizer's special tokens. verl removes them before it calls the reward; OpenRLHF does not."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
) -> float:
    """Return 1.0 if the text after the last ``=`` equals the ground truth, else 0.0.

    The prompt ends with ``=``, so an answer without its steps also counts: only the result is verified, as in the
    paper's mathematics problems.
    """
    return float(solution_str.rpartition("=")[2] == ground_truth)


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """Return the scores as OpenRLHF calls it, with prompt, answer and special tokens in one query."""
    import torch

    answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    for token in SPECIAL_TOKENS:
        answers = [answer.replace(token, "") for answer in answers]
    scores = [compute_score("", answer, label) for answer, label in zip(answers, labels, strict=True)]
    return {"rewards": torch.tensor(scores), "scores": torch.tensor(scores), "extra_logs": {}}
