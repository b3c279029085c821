# SPDX-License-Identifier: Apache-2.0
"""The base class of the engines' loss scalers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fp16_patch.loss_scaling.gradient_statistics import gather_statistics, gradient_slice
from fp16_patch.loss_scaling.gradients import Gradient
from fp16_patch.loss_scaling.headroom import NUM_SLICES, HeadroomTracker
from fp16_patch.loss_scaling.loss_check import BadLoss, first_bad_loss, log_bad_loss
from fp16_patch.loss_scaling.scale_rule import Counts, ScaleRule
from fp16_patch.loss_scaling.update import Update
from fp16_patch.precision.loss_scaling import LossScaling


class ScalerBase:
    """Hold the scale rule of one loss scaler.

    A subclass moves the scale by ``rule`` and passes it on to its engine, if possible through the engine's own scaler.
    """

    process_group: Any = None
    """Ranks that agree on every step; None for all ranks."""

    def __init__(self, settings: LossScaling) -> None:
        self.rule = ScaleRule(settings)
        self.headroom = HeadroomTracker()
        self.last_headroom: tuple[float | None, float | None] = (None, None)
        """Headroom in bits and underflow share, as :meth:`measure_headroom` found them last."""
        self.bad_loss: BadLoss | None = None
        """The loss that was not finite before it was scaled, on any rank, if the last update was skipped for one."""
        self.bad_loss_here: BadLoss | None = None
        """The first such loss of this rank since the last update."""

    @property
    def settings(self) -> LossScaling:
        """Return the settings in force."""
        return self.rule.settings

    @property
    def counts(self) -> Counts:
        """Return the number of updates, skips, growths and backoffs so far."""
        return self.rule.counts

    @property
    def history(self) -> deque[tuple[int, float]]:
        """Return (updates so far, scale from then on), oldest first."""
        return self.rule.history

    def get_scale(self) -> float:
        """Return the scale of the current update."""
        return self.rule.scale

    def scale(self, outputs: Any) -> Any:
        """Return ``outputs``, a loss tensor, multiplied by the scale."""
        return outputs * self.get_scale()

    def state_dict(self) -> dict[str, Any]:
        """Return :meth:`ScaleRule.state_dict`."""
        return self.rule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state by :meth:`ScaleRule.load_state_dict`."""
        self.rule.load_state_dict(state_dict)

    def report_bad_loss(self, bad_loss: BadLoss) -> None:
        """Keep what :func:`~fp16_patch.loss_scaling.loss_check.check_loss` found, for the update that it belongs to."""
        self.bad_loss_here = self.bad_loss_here or bad_loss

    def end_update(self, *, skipped: bool) -> None:
        """Count an update and move the scale; collective over the process group if it was skipped.

        All ranks skip together, so all of them ask here whether a loss of any rank is the reason.
        """
        mine, self.bad_loss_here = self.bad_loss_here, None
        self.bad_loss = first_bad_loss(mine, self.process_group) if skipped else None
        self.rule.update(skipped=skipped, loss_not_finite=self.bad_loss is not None)
        if self.bad_loss is not None:
            log_bad_loss(self.bad_loss, self.counts.updates, self.counts.losses_not_finite)

    @contextmanager
    def at_scale(self, scale: float) -> Iterator[None]:
        """Scale losses by ``scale`` for one pass. Counts and history do not change."""
        now = self.get_scale()
        self._show_scale(scale)
        try:
            yield
        finally:
            self._show_scale(now)

    def _show_scale(self, scale: float) -> None:
        self.rule.scale = scale

    def measure_headroom(self, gradients: Iterable[Gradient], device: torch.device, *, unscaled: bool = False) -> None:
        """Measure headroom and underflow share on one slice of ``gradients``, for ``last_headroom``; collective.

        Set ``unscaled`` if the gradients are divided by the scale already.
        """
        num_slices, updates, scale = self.headroom.num_slices, self.counts.updates, self.get_scale()
        one_slice = list(gradient_slice(list(gradients), updates % num_slices, num_slices))
        statistics = gather_statistics(one_slice, device, self.process_group, offset=updates // NUM_SLICES)
        if unscaled and statistics.peak is not None:
            statistics = replace(statistics, peak=statistics.peak * scale)
        self.last_headroom = self.headroom.add(statistics, scale)

    def describe_update(self, loss_scale: float, grad_norm: Any) -> Update:
        """Return the result of the last update, with the headroom that was measured last.

        ``loss_scale`` is what its loss was multiplied by. ``grad_norm``, a number or a scalar tensor, is ignored if
        the update was skipped.
        """
        if self.counts.consecutive:
            return Update(True, None, loss_scale, loss_not_finite=self.bad_loss is not None)
        headroom, share = self.last_headroom
        return Update(False, float(grad_norm), loss_scale, headroom_bits=headroom, underflow_share=share)
