# SPDX-License-Identifier: Apache-2.0
"""Dtypes noted on the object they were seen at, as tensors passed by."""

from __future__ import annotations

from typing import Any

_ATTRIBUTE = "_fp16_patch_seen"


def seen(holder: Any) -> dict[str, str]:
    """The notes kept on ``holder`` (an engine, a vLLM worker): row of the precision report -> dtype. Write into it."""
    if not hasattr(holder, _ATTRIBUTE):
        setattr(holder, _ATTRIBUTE, {})
    notes: dict[str, str] = getattr(holder, _ATTRIBUTE)
    return notes
