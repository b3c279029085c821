# SPDX-License-Identifier: Apache-2.0
"""What is read off the scaled gradients: the norm and with it every inf and NaN, the peak, the underflow share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises_code

from fp16_patch.engines.fsdp.gradients import read_gradients, read_layout
from fp16_patch.loss_scaling.gradient_statistics import (
    BLOCK,
    FP16_MAX,
    SAMPLE,
    GradientStatistics,
    _sample,
    gather_statistics,
    headroom_bits,
)
from fp16_patch.loss_scaling.gradients import Gradient, Layout

UNTIMED = settings(deadline=None)

CPU = torch.device("cpu")

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6)
"""Also scalars (no dimension) and parameters of which this rank holds nothing (a dimension of 0)."""

NOT_FINITE = st.sampled_from([math.inf, -math.inf, math.nan])


def look(*tensors: torch.Tensor, **options: Any) -> GradientStatistics:
    return gather_statistics([Gradient(tensor, 1.0) for tensor in tensors], CPU, **options)


def drawn(shapes: list[list[int]], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def together(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.empty(0), *(tensor.reshape(-1) for tensor in tensors)]).double()


@UNTIMED
@given(SHAPES, st.integers(0, 2**32), st.integers(-20, 20))
def test_norm_and_peak_are_those_of_all_elements_together(shapes: list[list[int]], seed: int, power: int) -> None:
    tensors = [tensor * 2.0**power for tensor in drawn(shapes, seed)]
    elements = together(tensors)
    found = look(*tensors)
    assert found.finite
    assert found.norm == pytest.approx(float(elements.norm()), rel=1e-6)
    assert found.peak == (float(elements.abs().max()) if elements.numel() else 0.0)


@UNTIMED
@given(st.data(), SHAPES, NOT_FINITE, st.booleans())
def test_one_element_that_is_not_finite_is_found_wherever_it_is(
    data: st.DataObject, shapes: list[list[int]], value: float, headroom: bool
) -> None:
    tensors = [*drawn(shapes, 0), torch.ones(3)]
    at = data.draw(st.integers(0, together(tensors).numel() - 1))
    for tensor in tensors:
        if 0 <= at < tensor.numel():
            tensor.view(-1)[at] = value
        at -= tensor.numel()
    found = look(*tensors, headroom=headroom)
    assert not found.finite


def test_infinities_of_both_signs_do_not_cancel() -> None:
    assert not look(torch.tensor([math.inf, -math.inf])).finite


def test_the_largest_gradients_that_float16_computes_with_are_finite() -> None:
    """65504 of 1,024 ranks or micro-batches summed in FP32, in every element."""
    assert look(torch.full((10_000,), FP16_MAX * 1024)).norm == pytest.approx(FP16_MAX * 1024 * 100)


def test_no_gradient_at_all() -> None:
    """A rank that holds nothing: its row adds nothing to what the others found."""
    found = look()
    assert found == GradientStatistics(norm=0.0, peak=0.0, underflow_share=None)
    assert found.finite
    assert headroom_bits(0.0) is None


@UNTIMED
@given(SHAPES, st.integers(0, 2**32), st.integers(0, 10**6))
def test_the_underflow_share_counts_exact_zeros(shapes: list[list[int]], seed: int, offset: int) -> None:
    tensors = [tensor.clamp(min=0) for tensor in drawn(shapes, seed)]
    elements = together(tensors)
    share = look(*tensors, offset=offset).underflow_share
    if elements.any():
        assert share == pytest.approx(float((elements == 0).double().mean()))
    else:
        assert share is None, "nothing but zeros: no loss to learn from, and nothing that FP16 lost"


def test_rows_of_a_lookup_table_are_no_underflow() -> None:
    table, weight = torch.zeros(100, 4), torch.tensor([0.0, 1.0])
    found = gather_statistics([Gradient(table, 1.0, sampled=False), Gradient(weight, 1.0)], CPU)
    assert found.underflow_share == 0.5


def test_the_share_of_what_is_larger_than_the_sample() -> None:
    """One zero in 16 elements, in two parameters of different size, at every offset."""
    small, large = (torch.arange(count) % 16 for count in (SAMPLE, 3 * SAMPLE))
    for offset in (0, 1, 7, 10**9):
        share = look(small.float(), large.float(), offset=offset).underflow_share
        assert share == pytest.approx(1 / 16, rel=1e-3)


def test_successive_samples_look_at_every_element() -> None:
    tensor = torch.arange(4 * SAMPLE)
    seen = torch.zeros(4 * SAMPLE, dtype=torch.bool)
    for offset in range(20):
        sample = _sample([tensor], offset)
        assert len(sample) == SAMPLE
        seen[sample] = True
    assert seen.all()


def test_what_is_not_asked_for_is_none() -> None:
    assert look(torch.ones(4), headroom=False) == GradientStatistics(norm=2.0)


@UNTIMED
@given(st.integers(-20, 15))
def test_headroom_is_how_often_the_scale_can_double(power: int) -> None:
    peak = 2.0**power
    bits = headroom_bits(look(torch.tensor([0.0, -peak])).peak or 0.0)
    assert bits is not None
    assert peak * 2 ** math.floor(bits) <= FP16_MAX < peak * 2 ** (math.floor(bits) + 1)


@UNTIMED
@given(SHAPES, st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 100))
def test_num_slices_passes_see_every_element(shapes: list[list[int]], seed: int, num_slices: int, first: int) -> None:
    tensors = drawn(shapes, seed)
    elements = together(tensors)
    looks = [look(*tensors, offset=offset, num_slices=num_slices) for offset in range(first, first + num_slices)]
    assert len({found.norm for found in looks}) == 1, "the norm takes all elements at every look"
    assert max(found.peak or 0.0 for found in looks) == (float(elements.abs().max()) if elements.numel() else 0.0)


def test_blocks_of_a_large_gradient() -> None:
    tensor = torch.randn(2 * BLOCK + 3, generator=torch.Generator().manual_seed(0))
    assert look(tensor).norm == pytest.approx(float(tensor.double().norm()), rel=1e-6)
    tensor[BLOCK] = math.nan
    assert not look(tensor).finite


def test_copies_are_counted_once() -> None:
    """A replicated gradient of four ranks is in four rows; each row holds a quarter of its squares."""
    quarter = gather_statistics([Gradient(torch.full((4,), 3.0), 4.0)], CPU)
    assert 4 * quarter.norm**2 == pytest.approx(36.0)
    assert quarter.peak == 3.0


def test_nothing_is_written() -> None:
    tensors = drawn([[3, 4], [5]], 0)
    before = [tensor.clone() for tensor in tensors]
    look(*tensors)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


# Which gradients those are.


def optimizer_with(parameter: torch.dtype, gradient: torch.dtype) -> torch.optim.Optimizer:
    whole, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, 3, dtype=parameter))
    whole.grad = torch.ones(2)
    other.grad_dtype = gradient
    other.grad = torch.ones(2, 3, dtype=gradient)
    return torch.optim.AdamW([{"params": [whole]}, {"params": [other]}])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("held", ["parameter", "gradient", "both"])
def test_half_precision_is_refused_by_name(half: torch.dtype, held: str) -> None:
    parameter = torch.float32 if held == "gradient" else half
    gradient = torch.float32 if held == "parameter" else half
    with raises_code("half-precision-master") as caught:
        list(read_gradients(optimizer_with(parameter, gradient), Layout()))
    parameter_s, gradient_s = (str(dtype).removeprefix("torch.") for dtype in (parameter, gradient))
    assert f"a {parameter_s} parameter of shape (2, 3) with a {gradient_s} gradient" in caught.value.what


def test_parameters_without_a_gradient_are_left_out() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    used.grad = torch.ones(2)
    (gradient,) = read_gradients(torch.optim.AdamW([unused, used]), Layout())
    assert gradient == Gradient(used.grad, 1.0)


def test_a_plain_model_s_layout() -> None:
    """Four ranks hold the same gradients. The embedding's weight, which the head shares, is not sampled."""
    embedding, head = torch.nn.Embedding(5, 2), torch.nn.Linear(2, 5)
    head.weight = embedding.weight
    layout = read_layout(torch.nn.Sequential(embedding, head), world_size=4)
    assert layout == Layout(world_size=4, shards=1, embedding_param_ids=frozenset({id(embedding.weight)}))
    for parameter in (head.weight, head.bias):
        parameter.grad = torch.ones_like(parameter)
    shared, bias = read_gradients(torch.optim.AdamW([head.weight, head.bias]), layout)
    assert (shared.copies, shared.sampled) == (4.0, False)
    assert (bias.copies, bias.sampled) == (4.0, True)
