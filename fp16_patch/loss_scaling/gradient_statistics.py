# SPDX-License-Identifier: Apache-2.0
"""One look at the scaled gradients of all ranks: their norm, their peak, and what FP16 lost.

Stock mixed precision reads or writes every gradient five times before the optimizer does (unscale and check,
norm, clip). The norm alone finds every inf and NaN, on whichever rank it is, and nothing is written.
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
"""Elements squared and added up in float32 at a time on a CPU; blocks are added up in float64."""
SAMPLE = 1 << 18
"""Elements a rank looks at for the underflow share: a share of 1 % is then known to 0.02 %."""


@dataclass(frozen=True)
class GradientStatistics:
    """Of the gradients as the backward left them, still multiplied by the loss scale; the same on every rank."""

    norm: float
    """2-norm over all ranks; inf or NaN as soon as one element is."""
    peak: float | None = None
    """Largest absolute element of those looked at; None where it was not asked for."""
    underflow_share: float | None = None
    """Share of sampled elements that are exactly zero: every contribution was below FP16's 6e-8. None where all
    gradients are zero, as those of a batch without advantages are."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm)


def headroom_bits(peak: float) -> float | None:
    """How often the scale could double before ``peak`` reaches FP16's largest number, 65504. None without gradients."""
    return math.log2(FP16_MAX / peak) if peak else None


def gather_statistics(
    gradients: Iterable[Gradient],
    device: torch.device,
    group: Any = None,
    *,
    health: bool = True,
    offset: int = 0,
    slices: int = 1,
) -> GradientStatistics:
    """Collective: every rank of ``group`` calls it, also one without any gradient. One small all-gather.

    ``device`` is where the ranks talk. ``health`` asks for the peak and the underflow share too. The norm takes
    every element, the peak one of ``slices`` equal parts of them, the share a sample of that part; ``offset``,
    counted up, moves both, so that successive updates look at different elements.
    """
    row = torch.zeros(4, dtype=torch.float64, device=device)  # squares, peak, zeros, sampled
    for same_device in _by_device(gradients):
        row[0] += _sum_of_squares(same_device).to(device)
        if health:
            runs = list(part_of(same_device, offset % slices, slices))
            row[1] = torch.maximum(row[1], _peak([run.local for run in runs]).to(row))
            sample = _sample([run.local for run in runs if run.sampled], offset // slices)
            row[2] += (sample == 0).sum().to(device)
            row[3] += sample.numel()
    squares, peaks, zeros, sampled = _from_all_ranks(row, group).cpu().T
    norm = float(squares.sum().sqrt())
    return GradientStatistics(
        norm=norm,
        peak=float(peaks.max()) if health else None,
        underflow_share=float(zeros.sum() / sampled.sum()) if norm and sampled.sum() else None,
    )


def _by_device(gradients: Iterable[Gradient]) -> list[list[Gradient]]:
    groups: dict[torch.device, list[Gradient]] = {}
    for gradient in gradients:
        if gradient.local.numel():  # a rank may hold nothing of a small parameter
            groups.setdefault(gradient.local.device, []).append(gradient)
    return list(groups.values())


def _sum_of_squares(gradients: Sequence[Gradient]) -> torch.Tensor:
    """float64, on the gradients' device; what lies on several ranks counts in parts."""
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
    if runs[0].is_cpu:  # ten times as fast there as the norm
        return torch.stack([bound for run in runs for bound in torch.aminmax(run)]).abs().max()
    return torch.stack(torch._foreach_norm(list(runs), torch.inf)).max()


def part_of(gradients: Sequence[Gradient], which: int, slices: int) -> Iterator[Gradient]:
    """One of ``slices`` equal parts of all elements, laid end to end: whole gradients, and pieces at both ends."""
    total = sum(gradient.local.numel() for gradient in gradients)
    first, last = which * total // slices, (which + 1) * total // slices
    begin = 0
    for gradient in gradients:
        end = begin + gradient.local.numel()
        if max(first, begin) < min(last, end):
            piece = gradient.local.reshape(-1)[max(first - begin, 0) : last - begin]
            yield replace(gradient, local=piece)
        begin = end


def _sample(tensors: Sequence[torch.Tensor], offset: int) -> torch.Tensor:
    """From each tensor one run of elements, as long as its share of all of them."""
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
