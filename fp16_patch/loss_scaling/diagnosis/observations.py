# SPDX-License-Identifier: Apache-2.0
"""What one traced pass shows, on all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from fp16_patch.loss_scaling.diagnosis.module_trace import Extremes, ModuleRow, Watched, merge_rows
from fp16_patch.loss_scaling.loss_check import BadLoss, first_bad_loss
from fp16_patch.loss_scaling.ranks import gather
from fp16_patch.loss_scaling.scaler_base import ScalerBase
from fp16_patch.loss_scaling.tensors import tensors_in


@dataclass(frozen=True)
class Losses:
    """The losses that went through the scaler, on all ranks."""

    peak: float | None = None
    """Largest finite magnitude, before scaling."""
    nonfinite: bool = False
    scaled_nonfinite: bool = False
    """Whether one is inf or NaN after scaling."""


@dataclass(frozen=True)
class Observations:
    """Facts of one traced pass; the same on every rank. Gradients are multiplied by ``loss_scale``."""

    reason: str
    """Why the pass was traced: ``"20 updates in a row were skipped"``."""
    loss_scale: float
    """The scale of the traced pass."""
    settings: Mapping[str, float | int]
    """``LossScaling.as_dict()``."""
    history: Sequence[tuple[int, float]]
    """(updates so far, scale from then on), oldest first."""
    counts: Mapping[str, int]
    rows: Sequence[ModuleRow]
    losses: Losses = field(default_factory=Losses)
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> share of inf and NaN in its gradient, if any."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> share of inf and NaN in itself, if any."""
    bad_loss: BadLoss | None = None
    """The loss that was not finite before it was scaled, if the framework checks its losses."""
    torch_version: str = torch.__version__


class Trace(Protocol):
    """What a trace reports; :class:`~fp16_patch.loss_scaling.diagnosis.module_trace.ModuleTrace` is one."""

    def rows(self) -> Sequence[ModuleRow]:
        """Return one row for each module of this rank."""

    def gradients(self) -> Watched:
        """Return what this rank's gradients of parameters hold after the pass."""

    def weights(self) -> Watched:
        """Return what this rank's parameters hold."""


def observe(
    trace: Callable[[], AbstractContextManager[Trace]], scaler: ScalerBase, run: Callable[[], object], reason: str
) -> Observations:
    """Trace one pass: ``run`` does forward and backward of one batch, its loss through ``scaler.scale``.

    Collective over the scaler's process group. The pass adds to the gradients that the model has. Neither gradients
    nor random state are restored.
    """
    scale = scaler.get_scale()  # ``run`` may end in an update, which changes it
    with trace() as traced, _observed_losses(scaler) as losses:
        run()
    group = scaler.process_group
    everyone = gather([(extremes.peak, extremes.bad > 0) for extremes in losses], group)
    peaks = [peak for (peak, _), _ in everyone if peak is not None]
    return Observations(
        reason=reason,
        loss_scale=scale,
        settings=scaler.settings.as_dict(),
        history=list(scaler.history),
        counts=asdict(scaler.counts),
        rows=merge_rows(traced.rows(), group),
        losses=Losses(
            peak=max(peaks, default=None),
            nonfinite=any(before for (_, before), _ in everyone),
            scaled_nonfinite=any(after for _, (_, after) in everyone),
        ),
        parameters=_shares(traced.gradients(), group),
        weights=_shares(traced.weights(), group),
        bad_loss=first_bad_loss(scaler.bad_loss_here, group),
    )


@contextmanager
def _observed_losses(scaler: Any) -> Iterator[tuple[Extremes, Extremes]]:
    """Observe the losses before and after ``scaler.scale``."""
    before, after = Extremes(), Extremes()
    scale = scaler.scale

    def observed(outputs: Any) -> Any:
        scaled = scale(outputs)
        for extremes, losses in ((before, outputs), (after, scaled)):
            for loss in tensors_in(losses):
                extremes.add(loss)
        return scaled

    scaler.scale = observed
    try:
        yield before, after
    finally:
        del scaler.scale


def _shares(watched: Watched, group: Any) -> dict[str, float]:
    bad: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for one_rank in gather({name: (seen.bad, seen.elements) for name, seen in watched.items()}, group):
        for name, (bad_here, elements_here) in one_rank.items():
            bad[name] += bad_here
            elements[name] += elements_here
    return {name: count / elements[name] for name, count in bad.items() if count}
