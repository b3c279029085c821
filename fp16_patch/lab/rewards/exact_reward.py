# SPDX-License-Identifier: Apache-2.0
"""Score an exact match: 1 if the last box, or the text after the last ####, or the whole answer equals the truth.

Use it as verl's ``custom_reward_function.path``, for data whose answers can be compared as text.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.lab.data.fields import extract_answer


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
) -> float:
    """Return 1.0 or 0.0; whitespace around the answer is ignored."""
    return float(extract_answer(solution_str) == ground_truth.strip())
