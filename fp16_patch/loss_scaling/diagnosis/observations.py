# SPDX-License-Identifier: Apache-2.0
"""Why updates are skipped: one batch run again with every module watched, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch

from fp16_patch.loss_scaling.diagnosis.cause import Finding, Remedies, find
from fp16_patch.loss_scaling.diagnosis.module_trace import (
    Extremes,
    ModuleRow,
    gather,
    local,
    merge_rows,
    plain_name,
    tensors_in,
    trace_modules,
)
from fp16_patch.loss_scaling.scale_rule import Counts
from fp16_patch.precision.loss_scaling import LossScaling


@dataclass(frozen=True)
class Losses:
    """The losses that went through the scaler, on all ranks."""

    peak: float | None = None
    """Largest finite magnitude, before scaling."""
    nonfinite: bool = False
    scaled_nonfinite: bool = False
    """After scaling."""


@dataclass(frozen=True)
class Diagnosis:
    """What one traced pass showed; the same on every rank. Gradients are multiplied by ``loss_scale``."""

    reason: str
    """Why it was made: ``"20 updates in a row were skipped"``."""
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
    """Parameter -> share of inf and NaN in its gradient, where there are any."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> share of inf and NaN in itself, where there are any."""
    torch_version: str = torch.__version__
    remedies: Remedies = field(default_factory=Remedies)

    @property
    def case(self) -> str:
        """``"weights"``, ``"forward"``, ``"loss"``, ``"backward"`` or ``"nothing"``: where it began."""
        return self.finding.case

    @property
    def cause(self) -> str:
        """One sentence, without a full stop."""
        return self.finding.cause

    @property
    def suspects(self) -> list[str]:
        """Names of the modules that overflowed first, at most three; none where no module is to blame."""
        return self.finding.suspects

    @property
    def advice(self) -> list[str]:
        """What to try, the most promising first; no full stops."""
        return self.finding.advice

    @cached_property
    def finding(self) -> Finding:
        return find(self)


class Scaler(Protocol):
    """What a diagnosis needs of a loss scaler; :class:`~fp16_patch.engines.fsdp.scaler.FsdpLossScaler` is one."""

    process_group: Any

    @property
    def settings(self) -> LossScaling: ...
    @property
    def counts(self) -> Counts: ...
    @property
    def history(self) -> Iterable[tuple[int, float]]: ...
    def get_scale(self) -> float: ...
    def scale(self, outputs: Any) -> Any: ...


class Traced(Protocol):
    """What a trace must tell; :class:`~fp16_patch.loss_scaling.diagnosis.module_trace.ModuleTrace` is one."""

    def rows(self) -> Sequence[ModuleRow]: ...


Watched = Mapping[str, tuple[Extremes, int]]
"""Parameter -> what was seen of this rank's part of it, or of its gradient, and the elements of that part."""


def diagnose(
    module: torch.nn.Module,
    scaler: Scaler,
    run: Callable[[], object],
    reason: str,
    *,
    trace: Callable[[], AbstractContextManager[Traced]] | None = None,
    gradients: Callable[[], Watched] | None = None,
    weights: Callable[[], Watched] | None = None,
    remedies: Remedies | None = None,
) -> Diagnosis:
    """Trace one pass: ``run`` does forward and backward of one batch, its loss through ``scaler.scale``.

    Collective over the scaler's process group. Adds to the gradients that ``module`` has; neither gradients nor
    random state are put back. ``gradients`` and ``weights`` are asked after the pass, where a framework keeps them
    elsewhere than in ``module``'s parameters; ``trace`` watches in place of :func:`trace_modules`, where ``module`` is
    one of several, or its modules have other names on other ranks.
    """
    scale = scaler.get_scale()  # ``run`` may end in an update that moves it
    with trace() if trace else trace_modules(module) as traced, _watched_losses(scaler) as losses:
        run()
    group = scaler.process_group
    everyone = gather([(extremes.peak, extremes.bad > 0) for extremes in losses], group)
    peaks = [peak for (peak, _), _ in everyone if peak is not None]
    return Diagnosis(
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
        parameters=_shares(gradients() if gradients else _held(module, lambda parameter: parameter.grad), group),
        weights=_shares(weights() if weights else _held(module, lambda parameter: parameter), group),
        remedies=remedies or Remedies(),
    )


@contextmanager
def _watched_losses(scaler: Any) -> Iterator[tuple[Extremes, Extremes]]:
    """The losses before and after ``scaler.scale``."""
    before, after = Extremes(), Extremes()
    scale = scaler.scale

    def watched(outputs: Any) -> Any:
        scaled = scale(outputs)
        for extremes, losses in ((before, outputs), (after, scaled)):
            for loss in tensors_in(losses):
                extremes.add(loss)
        return scaled

    scaler.scale = watched
    try:
        yield before, after
    finally:
        del scaler.scale


def parameter_overflow(module: torch.nn.Module, group: Any = None) -> dict[str, float]:
    """Parameter -> share of inf and NaN in its gradient over all ranks of ``group``, where there are any; collective.

    Gradients as they lie after the backward pass. A rank without a gradient has no inf or NaN in it.
    """
    return _shares(_held(module, lambda parameter: parameter.grad), group)


def _held(module: torch.nn.Module, part: Callable[[Any], torch.Tensor | None]) -> Watched:
    watched: dict[str, tuple[Extremes, int]] = {}
    for name, parameter in module.named_parameters():
        extremes = Extremes()
        if (held := part(parameter)) is not None:
            extremes.add(held)
        watched[plain_name(name)] = (extremes, local(parameter).numel())
    return watched


def _shares(watched: Watched, group: Any) -> dict[str, float]:
    bad: dict[str, int] = {}
    elements: dict[str, int] = {}
    for one_rank in gather({name: (extremes.bad, total) for name, (extremes, total) in watched.items()}, group):
        for name, (count, total) in one_rank.items():
            bad[name] = bad.get(name, 0) + count
            elements[name] = elements.get(name, 0) + total
    return {name: count / elements[name] for name, count in bad.items() if count}
