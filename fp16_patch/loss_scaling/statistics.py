# SPDX-License-Identifier: Apache-2.0
"""One look at the scaled gradients of all ranks: their norm, their peak, and what FP16 lost.

Stock mixed precision reads or writes every gradient five times before the optimizer does (unscale and check,
norm, clip). The norm alone finds every inf and NaN, on whichever rank it is, and nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from fp16_patch.loss_scaling.gradients import Gradient

FP16_MAX = 65504.0
SAMPLE = 1 << 18
"""Elements a rank looks at for the underflow share: a share of 1 % is then known to 0.02 %."""


@dataclass(frozen=True)
class GradientStatistics:
    """Of the gradients as the backward left them, still multiplied by the loss scale; the same on every rank."""

    norm: float
    """2-norm over all ranks; inf or NaN as soon as one element is."""
    peak: float | None = None
    """Largest absolute element; None where it was not asked for."""
    underflow_share: float | None = None
    """Share of sampled elements that are exactly zero: every contribution was below FP16's 6e-8. None where all
    gradients are zero, as those of a batch without advantages are."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm)

    @property
    def headroom_bits(self) -> float | None:
        """How often the scale could double before the peak reaches FP16's largest number, 65504."""
        return math.log2(FP16_MAX / self.peak) if self.finite and self.peak else None


def gather_statistics(
    gradients: Iterable[Gradient],
    device: torch.device,
    group: Any = None,
    *,
    health: bool = True,
    offset: int = 0,
) -> GradientStatistics:
    """Collective: every rank of ``group`` calls it, also one without any gradient. One small all-gather.

    ``device`` is where the ranks talk. ``health`` asks for the peak and the underflow share too; ``offset``
    moves the sample, so that successive updates look at different elements.
    """
    row = torch.zeros(4, dtype=torch.float64, device=device)  # squares, peak, zeros, sampled
    for same_device in _by_device(gradients):
        local = [gradient.local for gradient in same_device]
        squares = torch.stack(torch._foreach_norm(local, 2.0)).double().square()
        copies = torch.tensor([g.copies for g in same_device], dtype=torch.float64, device=squares.device)
        row[0] += (squares / copies).sum().to(device)
        if health:
            peak = torch.stack(torch._foreach_norm(local, torch.inf)).max()
            row[1] = torch.maximum(row[1], peak.to(row))
            sample = _sample([g.local for g in same_device if g.sampled], offset)
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
