# SPDX-License-Identifier: Apache-2.0
"""Compute Half matrix products on the CPU as a tensor core does: FP32 accumulation, one rounding at the end.

PyTorch's own CPU kernels for Half are 4 to 30 times slower (``benchmarks/cpu_matmul.py``), because most CPUs have no
FP16 matrix unit. Every product ends in one of four ATen operators, forward and backward, with and without autocast.
This module overrides those four for the CPU dispatch key; other dtypes go to the original kernel. Not covered: the
``out=`` variants, which ``torch.compile`` calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

_library: torch.library.Library | None = None


def enable() -> None:
    """Override mm, addmm, bmm and baddbmm for Half on the CPU, in this process. Idempotent."""
    global _library
    if _library is None:
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            for name, make in (("mm", _product), ("bmm", _product), ("addmm", _sum), ("baddbmm", _sum)):
                original = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
                library.impl(name, make(original), "CPU", with_keyset=True)
        _library = library


def disable() -> None:
    """Restore the original kernels."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


def _product(original: Callable[..., Any]) -> Callable[..., Any]:
    def product(keys: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype is torch.float16 is b.dtype:
            return original(keys, a.float(), b.float()).half()
        return original(keys, a, b)

    return product


def _sum(original: Callable[..., Any]) -> Callable[..., Any]:
    def sum_(keys: Any, c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **scales: Any) -> torch.Tensor:
        if a.dtype is torch.float16 is b.dtype and c.dtype is torch.float16:
            return original(keys, c.float(), a.float(), b.float(), **scales).half()
        return original(keys, c, a, b, **scales)

    return sum_
