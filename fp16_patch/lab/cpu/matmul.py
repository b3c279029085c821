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
            for name in ("mm", "bmm", "addmm", "baddbmm"):
                original = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
                library.impl(name, _in_fp32(original), "CPU", with_keyset=True)
        _library = library


def disable() -> None:
    """Restore the original kernels."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


def _in_fp32(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that computes products of Half in FP32 and rounds once; other dtypes go to ``original``."""

    def kernel(keys: Any, *operands: torch.Tensor, **scales: Any) -> torch.Tensor:
        if all(operand.dtype is torch.float16 for operand in operands):
            return original(keys, *(operand.float() for operand in operands), **scales).half()
        return original(keys, *operands, **scales)

    return kernel
