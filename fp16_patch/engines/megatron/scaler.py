# SPDX-License-Identifier: Apache-2.0
"""One loss scale for all sub-optimizers of a Megatron optimizer. Imports megatron.core at once.

Megatron's DynamicGradScaler (0.16.1, optimizer/grad_scaler.py) has two faults. It grows without a ceiling. And each
sub-optimizer of a ChainedOptimizer has its own scaler and moves it by its own overflows alone
(MixedPrecisionOptimizer's prepare_grads in optimizer/optimizer.py), while the loss is multiplied by the first scale.
After three overflows of experts only, at Megatron's hysteresis of 2, their next gradients are four times too large.
Megatron does not report that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.optimizer.grad_scaler import DynamicGradScaler

from fp16_patch.engines.megatron.checkpoint import checkpoint_entry, read_state
from fp16_patch.engines.megatron.gradients import embedding_param_ids, read_gradients
from fp16_patch.engines.megatron.refusals import refusals
from fp16_patch.engines.megatron.sub_optimizers import LOSS_SCALER, Optimizer, list_sub_optimizers
from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.scale_rule import ScaleRule
from fp16_patch.loss_scaling.scaler_base import ScalerBase
from fp16_patch.loss_scaling.state_file import State


def install_loss_scaler(optimizer: Optimizer, settings: LossScaling, model: Sequence[Any]) -> ChainedLossScaler:
    """Replace the scalers of all sub-optimizers by one with ``settings``, and return it.

    Call it before a checkpoint is loaded. ``model`` is what ``get_megatron_optimizer`` was given: the
    chunks, wrapped in DistributedDataParallel.

    Raises:
        Fp16PatchError: The optimizer or the model would not train in FP16 as configured.
    """
    if errors := refusals(optimizer, model):
        raise combine_errors(errors)
    parts, embeddings = list_sub_optimizers(optimizer), embedding_param_ids(model)
    scaler = ChainedLossScaler(settings, model, len(parts))
    device = scaler.sub_scalers[0].scale.device
    scaler.on_finite_gradients = lambda: scaler.measure_headroom(
        read_gradients(parts, embeddings), device, unscaled=True
    )
    for part, sub_scaler in zip(parts, scaler.sub_scalers, strict=True):
        part.grad_scaler = sub_scaler
    for chunk in model:
        # Megatron's schedules ask it for the scale of the loss, and of the auxiliary losses of experts.
        chunk.config.grad_scale_func = optimizer.scale_loss
    setattr(optimizer, LOSS_SCALER, scaler)
    return scaler


class ChainedLossScaler(ScalerBase):
    """Move one scale for all sub-optimizers; Megatron sees one of ``sub_scalers`` in each of them.

    The scale moves when every sub-optimizer has reported: by then each has divided its gradients by it. Each
    reports an overflow of any rank that shares its gradients, and all of them skip together.
    """

    def __init__(self, settings: LossScaling, model: Sequence[Any], num_sub_optimizers: int) -> None:
        super().__init__(settings)
        self.model = list(model)
        """The chunks of this rank."""
        self.sub_scalers = [SubOptimizerScaler(self, number) for number in range(num_sub_optimizers)]
        self.on_finite_gradients: Callable[[], object] | None = None
        """Called in an update without overflow, before gradients are clipped."""
        self._reports: dict[int, bool] = {}
        self._loaded: dict[int, State] = {}
        self._publish()

    def scale(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return ``outputs`` multiplied by the scale, as Megatron's ``scale_loss`` does."""
        return outputs * self.sub_scalers[0].scale

    def report(self, number: int, found_inf: bool) -> None:
        """Record whether sub-optimizer ``number`` overflowed; the last report moves the scale."""
        if number in self._reports:
            raise Fp16PatchError(
                f"part {number} of {len(self.sub_scalers)} of this optimizer was stepped again before the others",
                code="optimizer-step-out-of-order",
                allowed="one step of the whole optimizer",
                next_step="call step() of the ChainedOptimizer, not of one in it",
            )
        self._reports[number] = found_inf
        if len(self._reports) == len(self.sub_scalers):
            skipped = any(self._reports.values())
            self.clear_reports()
            if self.on_finite_gradients is not None and not skipped:
                self.on_finite_gradients()
            self.end_update(skipped=skipped)
            self._publish()

    def clear_reports(self) -> None:
        """Drop the reports of a step that ended in an exception."""
        self._reports.clear()

    def load(self, number: int, saved: State) -> None:
        """Restore the state of sub-optimizer ``number``.

        Megatron's own scalers may have been saved with different scales. The lowest of them is used for all.
        """
        if number in self._loaded:
            self._loaded.clear()
        self._loaded[number] = saved
        self.load_state_dict(min(self._loaded.values(), key=lambda state: float(state["scale"])))
        self._publish()

    def pop_loaded_states(self) -> list[State]:
        """Return the states loaded since the last call, one a sub-optimizer; the lowest scale first."""
        loaded = sorted(self._loaded.values(), key=lambda state: float(state["scale"]))
        self._loaded.clear()
        return loaded

    def reset(self) -> None:
        """Restart at ``init_scale`` with all counts at 0."""
        self.rule = ScaleRule(self.settings)
        self._publish()

    def _show_scale(self, scale: float) -> None:
        self.rule.scale = self.rule.clamp(scale)
        self._publish()

    def _publish(self) -> None:
        for sub_scaler in self.sub_scalers:
            sub_scaler.show(self.rule)


class SubOptimizerScaler(DynamicGradScaler):  # type: ignore[misc]  # megatron is read through Any
    """Show one sub-optimizer the state of the :class:`ChainedLossScaler`, under Megatron's names."""

    def __init__(self, chained: ChainedLossScaler, number: int) -> None:
        settings = chained.settings
        self._chained, self._number = chained, number
        self._last_state_dict: dict[str, Any] | None = None
        super().__init__(
            initial_scale=settings.init_scale,
            min_scale=settings.min_scale,
            growth_factor=settings.growth_factor,
            backoff_factor=settings.backoff_factor,
            growth_interval=settings.growth_interval,
            hysteresis=settings.hysteresis,
        )

    def show(self, rule: ScaleRule) -> None:
        """Take over scale and trackers of ``rule``."""
        self._growth_tracker, self._hysteresis_tracker = rule.growth_tracker, rule.hysteresis_left
        # A new tensor, as Megatron makes one: a caller may hold the old one.
        self._scale = torch.full_like(self.scale, rule.scale)

    def update(self, found_inf: bool) -> None:
        """Report whether this sub-optimizer overflowed."""
        self._chained.report(self._number, bool(found_inf))

    def state_dict(self) -> dict[str, Any]:
        """Return Megatron's own state, which loads without this package, and one entry more."""
        self._last_state_dict = super().state_dict() | checkpoint_entry(self._chained.state_dict())
        return self._last_state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state with or without this package's entry; the settings of this run hold.

        Raises:
            Fp16PatchError: ``state_dict`` is something else.
        """
        saved = read_state(state_dict, self._chained.settings)
        # DistributedOptimizer.sharded_state_dict(is_loading=True) first loads what it has just been given here: the
        # same object. That warm-up is not a resume. A copy of an equal state is one.
        warm_up = state_dict is self._last_state_dict and saved == self._chained.state_dict()
        if saved is not None and not warm_up:
            self._chained.load(self._number, saved)
