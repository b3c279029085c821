# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's DynamicLossScaler with this package's rule. Imports deepspeed: import it where deepspeed is already.

What is wrong with DeepSpeed's (0.19.6, runtime/fp16/loss_scaler.py): it grows without a ceiling; at the floor it
raises an Exception without a reason; its hysteresis of 2 leaves the scale as it is on a first overflow; and it moves
in the middle of an optimizer step, so that gradients are divided by another scale than they were multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.scale_rule import Counts, ScaleRule
from fp16_patch.loss_scaling.scaler_base import ScalerBase


class BoundedLossScaler(ScalerBase, DynamicLossScaler):  # type: ignore[misc]  # deepspeed is read through Any
    """To DeepSpeed its own scaler; to this package what :class:`~fp16_patch.engines.fsdp.scaler.FsdpLossScaler` is."""

    def __init__(self, settings: LossScaling, embedding_param_ids: frozenset[int] = frozenset()) -> None:
        ScalerBase.__init__(self, settings)
        self.embedding_param_ids = embedding_param_ids
        """As in :class:`~fp16_patch.loss_scaling.gradients.Layout`."""
        self._steps_open = 0
        self._overflow: bool | None = None
        self._look: Callable[[], None] | None = None
        DynamicLossScaler.__init__(self, **_stock_arguments(settings))

    @property
    def cur_scale(self) -> float:
        """DeepSpeed's name; it reads and sets this one."""
        return self.rule.scale

    @cur_scale.setter
    def cur_scale(self, scale: float) -> None:
        self.rule.set_scale(scale)

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        return self.scale(loss)

    def update_scale(self, overflow: bool) -> None:
        """Move the scale; while :meth:`standing_still`, at its end."""
        if self._steps_open:
            self._overflow = bool(overflow)
            if self._look is not None and not overflow:
                self._look()
        else:
            self.rule.update(skipped=bool(overflow))

    @contextmanager
    def standing_still(self, look: Callable[[], None] | None = None) -> Iterator[None]:
        """For one optimizer step: it divides by the scale after it has asked for the next one.

        ``look`` is called in between, with the gradients complete and finite and still multiplied by the scale.
        """
        self._steps_open += 1
        self._look = look
        try:
            yield
        finally:
            self._steps_open -= 1
            self._look = None
            overflow, self._overflow = self._overflow, None
            if overflow is not None:
                self.update_scale(overflow)

    def continue_from(self, stock: DynamicLossScaler, skipped: int) -> None:
        """Go on from the scale and the trackers of DeepSpeed's own scaler; this one's settings hold."""
        tracker = (stock.cur_iter - stock.last_overflow_iter - 1) % stock.scale_window
        counts = Counts(updates=stock.cur_iter, skipped=min(skipped, stock.cur_iter))
        self.rule = ScaleRule.from_native_scaler(self.settings, stock.cur_scale, tracker, stock.cur_hysteresis, counts)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Into a checkpoint goes DeepSpeed's own class, which loads without this package."""
        stock = DynamicLossScaler(**_stock_arguments(self.settings))
        stock.cur_scale, stock.scale_factor = self.rule.scale, self.settings.growth_factor
        stock.cur_hysteresis, stock.cur_iter = self.rule.hysteresis_left, self.counts.updates
        stock.last_overflow_iter = self.counts.updates - 1 - self.rule.growth_tracker
        return DynamicLossScaler, tuple(_stock_arguments(self.settings).values()), vars(stock)


def _stock_arguments(settings: LossScaling) -> dict[str, Any]:
    """In the order of its parameters."""
    return {
        "init_scale": settings.init_scale,
        "scale_window": settings.growth_interval,
        "min_scale": settings.min_scale,
        "delayed_shift": settings.hysteresis,
        "consecutive_hysteresis": False,
        "raise_error_at_min_scale": True,
        "dtype": torch.half,
    }


def usable(scaler: Any) -> bool:
    """Whether ``scaler``, unpickled from a checkpoint, is a dynamic one with numbers to go on from."""
    if not isinstance(scaler, DynamicLossScaler):
        return False
    counts = (scaler.cur_iter, scaler.last_overflow_iter, scaler.scale_window, scaler.cur_hysteresis)
    scale = scaler.cur_scale
    return (
        all(isinstance(count, int) for count in counts)
        and scaler.scale_window > 0
        and scaler.cur_iter > scaler.last_overflow_iter
        and isinstance(scale, int | float)
        and 0 < scale < math.inf
    )
