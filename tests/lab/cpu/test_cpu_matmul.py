# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from fp16_patch.lab.cpu import matmul

HALF, FULL = torch.float16, torch.float32
Product = Callable[[torch.dtype], torch.Tensor]


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(HALF)


A, B, C = tensor(40, 300), tensor(300, 50), tensor(40, 50)
A3, B3, C3 = tensor(3, 40, 300), tensor(3, 300, 50), tensor(3, 40, 50)

PRODUCTS: dict[str, Product] = {
    "mm": lambda d: torch.mm(A.to(d), B.to(d)),
    "bmm": lambda d: torch.bmm(A3.to(d), B3.to(d)),
    "addmm": lambda d: torch.addmm(C.to(d), A.to(d), B.to(d)),
    "addmm with scales": lambda d: torch.addmm(C.to(d), A.to(d), B.to(d), beta=0.5, alpha=3),
    "baddbmm with scales": lambda d: torch.baddbmm(C3.to(d), A3.to(d), B3.to(d), beta=2, alpha=0.1),
    "linear of 3 dimensions with bias": lambda d: F.linear(A3.to(d), B.t().to(d), C[0].to(d)),
    "einsum": lambda d: torch.einsum("bij,bjk->ik", A3.to(d), B3.to(d)),
    "transposed, not contiguous": lambda d: torch.mm(B.to(d).t(), A.to(d).t()),
}


@pytest.fixture
def enabled() -> Iterator[None]:
    matmul.enable()
    yield
    matmul.disable()


def kernels(operator: str) -> str:
    return torch._C._dispatch_dump(f"aten::{operator}")


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_a_half_product_is_the_fp32_product_rounded_once(enabled: None, product: Product) -> None:
    half, full = product(HALF), product(FULL)
    assert half.dtype is HALF
    assert torch.equal(half, full.half()), f"off by up to {(half - full).abs().max()}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_other_dtypes_keep_their_own_kernel(product: Product, dtype: torch.dtype) -> None:
    before = product(dtype)
    matmul.enable()
    try:
        assert torch.equal(product(dtype), before)
    finally:
        matmul.disable()


def test_gradients_under_autocast_are_fp32_products_rounded_once(enabled: None) -> None:
    x, w = A.float().requires_grad_(), B.t().float().requires_grad_()
    with torch.autocast("cpu", dtype=HALF):
        y = F.linear(x, w)
    assert y.dtype is HALF
    y.backward(C)
    assert x.grad is not None
    assert w.grad is not None
    assert torch.equal(x.grad, (C.float() @ w.detach()).half().float()), "input gradient"
    assert torch.equal(w.grad, (C.float().t() @ A.float()).half().float()), "weight gradient"


def test_too_large_for_half_is_infinite_and_raises_no_error(enabled: None) -> None:
    row = torch.full((1, 64), 60.0, dtype=HALF)
    assert torch.mm(row, row.t()).isinf().all(), "64 * 3600 is beyond 65504"


def test_mixed_dtypes_and_shapes_that_do_not_fit_are_still_errors(enabled: None) -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(A, B.float())
    with pytest.raises(RuntimeError, match="dtype"):
        torch.addmm(C.float(), A, B)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.mm(A, A)


def test_enabling_twice_and_disabling_leaves_the_operators_as_they_were() -> None:
    before = {operator: kernels(operator) for operator in ("mm", "bmm", "addmm", "baddbmm")}
    matmul.enable()
    matmul.enable()
    assert all("lab/cpu/matmul.py" in kernels(operator) for operator in before)
    matmul.disable()
    assert {operator: kernels(operator) for operator in before} == before
