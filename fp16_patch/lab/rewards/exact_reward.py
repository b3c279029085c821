# SPDX-License-Identifier: Apache-2.0
"""An exact match: 1 where the last box, or what stands behind the last ####, or the whole answer, is the truth.

For verl's ``custom_reward_function.path``, and for data whose answers need no mathematics to compare.
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
    """1.0 or 0.0; blanks around the answer do not count."""
    return float(extract_answer(solution_str) == ground_truth.strip())
