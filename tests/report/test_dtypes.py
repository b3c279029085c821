# SPDX-License-Identifier: Apache-2.0
"""Dtypes in words: one where there is one, shares by elements where there are several."""

from __future__ import annotations

import torch

from fp16_patch.report.dtypes import dtype_shares, format_dtypes


def zeros(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(count, dtype=dtype)


def test_one_dtype_is_only_named() -> None:
    assert dtype_shares([zeros(3, torch.float16), zeros(5, torch.float16)]) == "float16"


def test_shares_are_by_elements_not_by_tensors_and_the_largest_comes_first() -> None:
    tensors = [zeros(4, torch.float32), zeros(4, torch.float32), zeros(992, torch.float16)]
    assert dtype_shares(tensors) == "float16 (99.2%), float32 (0.8%)"


def test_no_tensors() -> None:
    assert dtype_shares([]) == "none"
    assert dtype_shares(iter([]), none="created at the first update") == "created at the first update"


def test_a_shard_without_elements_still_has_a_dtype() -> None:
    assert dtype_shares([zeros(0, torch.bfloat16)]) == "bfloat16"
    assert dtype_shares([zeros(0, torch.bfloat16), zeros(0, torch.float32)]) == "bfloat16 (0.0%), float32 (0.0%)"


def test_values_are_not_read() -> None:
    assert dtype_shares([torch.empty(7, dtype=torch.float16, device="meta")]) == "float16"


def test_agree_lists_each_dtype_once() -> None:
    assert format_dtypes([torch.float16, torch.float16]) == "float16"
    assert format_dtypes([torch.float32, torch.bfloat16, torch.float32]) == "bfloat16, float32"
    assert format_dtypes([]) == "none"


class QuantizedState(torch.Tensor):
    """A state of 8 bits that poses as FP32, as torchao's and the like do."""

    codes: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor) -> QuantizedState:
        made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined]
        made.codes = codes
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, *_: object) -> None:
        raise AssertionError("its values were read")


def test_a_quantized_state_does_not_pose_as_fp32() -> None:
    state = QuantizedState(zeros(4, torch.uint8))
    assert state.dtype is torch.float32
    assert dtype_shares([state]) == "uint8"
    assert dtype_shares([state, zeros(4, torch.float32)]) == "uint8 (50.0%), float32 (50.0%)"
