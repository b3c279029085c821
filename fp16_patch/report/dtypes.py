# SPDX-License-Identifier: Apache-2.0
"""Format the dtypes of a set of tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any


def dtype_shares(tensors: Iterable[Any], none: str = "none") -> str:
    """Return ``"float16"``, or ``"float16 (99.2%), float32 (0.8%)"`` by elements if the dtypes are mixed.

    Args:
        tensors: Torch tensors of any shape; of a DTensor the local part counts, and of a tensor that wraps others, such
            as a quantized state that poses as FP32, what it holds. Their values are not read.
        none: The text to return if there are no tensors.
    """
    elements: Counter[str] = Counter()
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        for held in _held_tensors(local):
            elements[str(held.dtype).removeprefix("torch.")] += held.numel()
    if not elements:
        return none
    if len(elements) == 1:
        return next(iter(elements))
    total = sum(elements.values()) or 1
    return ", ".join(f"{dtype} ({count / total:.1%})" for dtype, count in elements.most_common())


def _held_tensors(tensor: Any) -> Iterator[Any]:
    """Yield the tensors that a wrapper subclass holds (torch's ``__tensor_flatten__``); of another tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _held_tensors(getattr(tensor, name))


def state_tensors(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) of everything in a torch optimizer's state except step counts."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if name != "step" and hasattr(value, "is_floating_point"):
                yield name, value


def format_dtypes(dtypes: Iterable[Any]) -> str:
    """Return the dtypes without counts: ``"float16"`` or ``"bfloat16, float32"``."""
    return ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})) or "none"
