# SPDX-License-Identifier: Apache-2.0
"""A DynamicLossScaler of DeepSpeed with this package's scale rule. Imports deepspeed, so import it late.

DeepSpeed's own (0.19.6, runtime/fp16/loss_scaler.py) has four defects. It grows without a ceiling. At the floor it
raises an Exception without a reason. Its hysteresis of 2 keeps the scale on a first overflow. It moves the scale in
the middle of an optimizer step, so gradients are divided by another scale than the loss was multiplied by.
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
from fp16_patch.loss_scaling.update import Update


class DeepSpeedLossScaler(ScalerBase, DynamicLossScaler):  # type: ignore[misc]  # deepspeed is read through Any
    """Move the scale by this package's rule behind the interface of DeepSpeed's own scaler.

    ``embedding_param_ids`` is as in :class:`~fp16_patch.loss_scaling.gradients.Layout`.
    """

    def __init__(self, settings: LossScaling, embedding_param_ids: frozenset[int] = frozenset()) -> None:
        ScalerBase.__init__(self, settings)
        self.embedding_param_ids = embedding_param_ids
        self.last_update: Update | None = None
        """The update that the engine's last ``step()`` made; None if it only accumulated."""
        self._open_steps = 0
        self._deferred_overflow: bool | None = None
        self._on_finite_gradients: Callable[[], None] | None = None
        DynamicLossScaler.__init__(self, **_stock_arguments(settings))

    @property
    def cur_scale(self) -> float:
        """Return or set the scale, under DeepSpeed's name."""
        return self.rule.scale

    @cur_scale.setter
    def cur_scale(self, scale: float) -> None:
        self.rule.set_scale(scale)

    def update_scale(self, overflow: bool) -> None:
        """Move the scale, or defer that to the end of :meth:`defer_scale_update`."""
        if self._open_steps:
            self._deferred_overflow = bool(overflow)
            if self._on_finite_gradients is not None and not overflow:
                self._on_finite_gradients()
        else:
            self.end_update(skipped=bool(overflow))

    @contextmanager
    def defer_scale_update(self, on_finite_gradients: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep the scale constant during one optimizer step: DeepSpeed updates it before it divides by it.

        ``on_finite_gradients`` is called when the gradients are complete, finite and still multiplied by the scale.
        """
        self._open_steps += 1
        self._on_finite_gradients = on_finite_gradients
        try:
            yield
        finally:
            self._open_steps -= 1
            self._on_finite_gradients = None
            overflow, self._deferred_overflow = self._deferred_overflow, None
            if overflow is not None:
                self.update_scale(overflow)

    def load_stock_scaler(self, stock: DynamicLossScaler, skipped: int) -> None:
        """Take the scale and the trackers of DeepSpeed's own scaler. The settings of this one hold."""
        tracker = (stock.cur_iter - stock.last_overflow_iter - 1) % stock.scale_window
        counts = Counts(updates=stock.cur_iter, skipped=min(skipped, stock.cur_iter))
        self.rule = ScaleRule.from_native_scaler(self.settings, stock.cur_scale, tracker, stock.cur_hysteresis, counts)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as DeepSpeed's own class, which loads without this package."""
        stock = DynamicLossScaler(**_stock_arguments(self.settings))
        stock.cur_scale, stock.scale_factor = self.rule.scale, self.settings.growth_factor
        stock.cur_hysteresis, stock.cur_iter = self.rule.hysteresis_left, self.counts.updates
        stock.last_overflow_iter = self.counts.updates - 1 - self.rule.growth_tracker
        return DynamicLossScaler, tuple(_stock_arguments(self.settings).values()), vars(stock)


def _stock_arguments(settings: LossScaling) -> dict[str, Any]:
    """Return the arguments of DynamicLossScaler, in the order of its parameters."""
    return {
        "init_scale": settings.init_scale,
        "scale_window": settings.growth_interval,
        "min_scale": settings.min_scale,
        "delayed_shift": settings.hysteresis,
        "consecutive_hysteresis": False,
        "raise_error_at_min_scale": True,
        "dtype": torch.half,
    }


def is_resumable(scaler: Any) -> bool:
    """Return whether ``scaler``, unpickled from a checkpoint, is dynamic and holds valid numbers."""
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
