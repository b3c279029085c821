# SPDX-License-Identifier: Apache-2.0
"""The paper's reward on mathematics: 1 where math-verify finds the answer in the last box right, else 0.

For verl's ``custom_reward_function.path`` and OpenRLHF's ``--reward.remote_url``. Both load this file by itself, so it
imports nothing of this package. An answer cut off before its box gets 0, as in the paper.
"""

from __future__ import annotations

from typing import Any

_BOX = "\\boxed{"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
) -> float:
    """For verl, which calls this outside the main thread: math-verify's timeouts, which need signals, are off."""
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the reward on mathematics needs math-verify: pip install math-verify") from error

    box = solution_str.rfind(_BOX)
    if box < 0:
        return 0.0
    wanted = parse(f"{_BOX}{ground_truth}}}", parsing_timeout=None)
    found = parse(solution_str[box:], parsing_timeout=None)
    return float(verify(wanted, found, timeout_seconds=None))


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """The same for OpenRLHF, whose queries are the prompt and the answer in one text."""
    import torch

    answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    scores = [compute_score("", answer, label) for answer, label in zip(answers, labels, strict=True)]
    return {"rewards": torch.tensor(scores), "scores": torch.tensor(scores), "extra_logs": {}}
