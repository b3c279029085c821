# SPDX-License-Identifier: Apache-2.0
"""The verifier, for verl's ``custom_reward_function.path``: verl loads this file by itself, so it imports nothing."""

from __future__ import annotations

from typing import Any


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
