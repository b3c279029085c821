# SPDX-License-Identifier: Apache-2.0
"""Measure the scaled gradients of all ranks in one pass: norm, peak, and the share that FP16 lost.

Stock mixed precision reads or writes every gradient five times before the optimizer does (unscale and check,
norm, clip). Here one pass reads the gradients and writes nothing. The norm alone finds every inf and NaN on any rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from fp16_patch.loss_scaling.gradients import Gradient

FP16_MAX = 65504.0
BLOCK = 1 << 18
"""Elements that a CPU squares and sums in float32 at a time. Blocks are summed in float64."""
SAMPLE = 1 << 18
"""Elements that a rank samples for the underflow share: a share of 1 % is then known to 0.02 %."""


@dataclass(frozen=True)
class GradientStatistics:
    """Statistics of gradients that are still multiplied by the loss scale; the same on every rank."""

    norm: float
    """2-norm over all ranks; inf or NaN if one element is inf or NaN."""
    peak: float | None = None
    """Largest absolute element of those measured; None if it was not requested."""
    underflow_share: float | None = None
    """Share of sampled elements that are exactly zero: every contribution was below FP16's 6e-8. None if all
    gradients are zero, as in a batch without advantages."""

    @property
    def finite(self) -> bool:
        """Return whether no gradient of any rank holds inf or NaN."""
        return math.isfinite(self.norm)


def headroom_bits(peak: float) -> float | None:
    """Return how often the scale could double before ``peak`` reaches 65504, FP16's largest number; None for 0."""
    return math.log2(FP16_MAX / peak) if peak else None


def gather_statistics(
    gradients: Iterable[Gradient],
    device: torch.device,
    group: Any = None,
    *,
    headroom: bool = True,
    offset: int = 0,
    num_slices: int = 1,
) -> GradientStatistics:
    """Return the statistics of ``gradients`` over all ranks of ``group``, by one small all-gather.

    Collective: every rank of ``group`` calls it, also a rank without gradients. ``device`` is the device of the
    all-gather. With ``headroom``, the peak and the underflow share are measured too. The norm reads every element, the
    peak one of ``num_slices`` equal slices, the share a sample of that slice. Increase ``offset`` by one at each
    update: then successive updates measure different elements.
    """
    row = torch.zeros(4, dtype=torch.float64, device=device)  # squares, peak, zeros, sampled
    for same_device in _by_device(gradients):
        row[0] += _sum_of_squares(same_device).to(device)
        if headroom:
            runs = list(gradient_slice(same_device, offset % num_slices, num_slices))
            row[1] = torch.maximum(row[1], _peak([run.local for run in runs]).to(row))
            sample = _sample([run.local for run in runs if run.sampled], offset // num_slices)
            row[2] += (sample == 0).sum().to(device)
            row[3] += sample.numel()
    squares, peaks, zeros, sampled = _from_all_ranks(row, group).cpu().T
    norm = float(squares.sum().sqrt())
    return GradientStatistics(
        norm=norm,
        peak=float(peaks.max()) if headroom else None,
        underflow_share=float(zeros.sum() / sampled.sum()) if norm and sampled.sum() else None,
    )


def _by_device(gradients: Iterable[Gradient]) -> list[list[Gradient]]:
    groups: dict[torch.device, list[Gradient]] = {}
    for gradient in gradients:
        if gradient.local.numel():  # a rank may hold nothing of a small parameter
            groups.setdefault(gradient.local.device, []).append(gradient)
    return list(groups.values())


def _sum_of_squares(gradients: Sequence[Gradient]) -> torch.Tensor:
    """Return a float64 scalar on the gradients' device. An element on several ranks counts once over all ranks."""
    if gradients[0].local.is_cpu:  # a dot product is the one reduction that reaches a CPU's memory bandwidth
        blocks = [(block, g.copies) for g in gradients for block in g.local.reshape(-1).split(BLOCK)]
        squares = torch.stack([torch.dot(block, block) for block, _ in blocks]).double()
        copies = [count for _, count in blocks]
    else:
        squares = torch.stack(torch._foreach_norm([g.local for g in gradients], 2.0)).double().square()
        copies = [g.copies for g in gradients]
    return (squares / torch.tensor(copies, dtype=torch.float64, device=squares.device)).sum()


def _peak(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    if not runs:
        return torch.zeros(())
    if runs[0].is_cpu:  # there ten times as fast as the norm
        return torch.stack([bound for run in runs for bound in torch.aminmax(run)]).abs().max()
    return torch.stack(torch._foreach_norm(list(runs), torch.inf)).max()


def gradient_slice(gradients: Sequence[Gradient], which: int, num_slices: int) -> Iterator[Gradient]:
    """Yield slice ``which`` (from 0) of ``num_slices`` equal slices of all elements, laid end to end.

    A slice consists of whole gradients, and of pieces at its two ends.
    """
    total = sum(gradient.local.numel() for gradient in gradients)
    first, last = which * total // num_slices, (which + 1) * total // num_slices
    begin = 0
    for gradient in gradients:
        end = begin + gradient.local.numel()
        if max(first, begin) < min(last, end):
            piece = gradient.local.reshape(-1)[max(first - begin, 0) : last - begin]
            yield replace(gradient, local=piece)
        begin = end


def _sample(tensors: Sequence[torch.Tensor], offset: int) -> torch.Tensor:
    """Return one run of elements from each tensor, as long as its share of all elements."""
    total = sum(tensor.numel() for tensor in tensors)
    runs = [torch.empty(0)]
    for tensor in tensors:
        length = min(tensor.numel(), math.ceil(SAMPLE * tensor.numel() / total))
        start = offset * length % (tensor.numel() - length + 1)
        runs.append(tensor.reshape(-1)[start : start + length])
    return torch.cat(runs[1:] or runs)


def _from_all_ranks(row: torch.Tensor, group: Any) -> torch.Tensor:
    if not dist.is_initialized():
        return row[None]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    return torch.stack(rows)
