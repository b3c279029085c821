# SPDX-License-Identifier: Apache-2.0
"""Say in a few words which dtypes a set of tensors has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any


def describe(tensors: Iterable[Any], none: str = "none") -> str:
    """``"float16"``, or ``"float16 (99.2%), float32 (0.8%)"`` by elements where they are mixed.

    ``tensors`` are torch tensors of any shape (DTensors count their local part); ``none`` is returned
    when there are none. Reads no values.
    """
    elements: Counter[str] = Counter()
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        elements[str(tensor.dtype).removeprefix("torch.")] += local.numel()
    if not elements:
        return none
    if len(elements) == 1:
        return next(iter(elements))
    total = sum(elements.values()) or 1
    return ", ".join(f"{dtype} ({count / total:.1%})" for dtype, count in elements.most_common())


def agree(dtypes: Iterable[Any]) -> str:
    """The dtypes in words, without counts: ``"float16"`` or ``"bfloat16, float32"``."""
    return ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})) or "none"
