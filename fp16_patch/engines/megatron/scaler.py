# SPDX-License-Identifier: Apache-2.0
"""One loss scale for all parts of a Megatron optimizer. Imports megatron.core: import it where Megatron is already.

What is wrong with Megatron's DynamicGradScaler (0.16.1, optimizer/grad_scaler.py): it grows without a ceiling; and each
part of a ChainedOptimizer has one of its own and moves it by its own overflows alone (MixedPrecisionOptimizer's
prepare_grads in optimizer/optimizer.py), while the loss is multiplied by the first one's. After three overflows of
experts only, at Megatron's hysteresis of 2, their next gradients are four times too large, and nothing says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.optimizer.grad_scaler import DynamicGradScaler

from fp16_patch.engines.megatron import saved_state
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.headroom import Health
from fp16_patch.loss_scaling.scale_rule import Counts, ScaleRule
from fp16_patch.loss_scaling.state_file import State

Look = Callable[[], tuple[float | None, float | None]]


class Governor:
    """To this package what :class:`~fp16_patch.engines.fsdp.scaler.LossScaler` is; Megatron sees its ``parts``.

    The scale stands still until every part has reported: each has divided its gradients by it then.
    """

    process_group = None
    """All ranks: of an overflow each part tells all that share its gradients, and all parts skip together."""

    def __init__(self, settings: LossScaling, model: Sequence[Any], parts: int) -> None:
        self.rule = ScaleRule(settings)
        self.model = list(model)
        """The chunks of this rank."""
        self.health = Health()
        self.parts = [PartScaler(self, number) for number in range(parts)]
        self.look: Look | None = None
        """Asked for headroom and underflow share of an update without overflow, before gradients are clipped."""
        self.seen: tuple[float | None, float | None] = (None, None)
        """Its last answer."""
        self._reports: dict[int, bool] = {}
        self._loaded: dict[int, State] = {}
        self._publish()

    @property
    def settings(self) -> LossScaling:
        return self.rule.settings

    @property
    def counts(self) -> Counts:
        return self.rule.counts

    @property
    def history(self) -> deque[tuple[int, float]]:
        """(updates so far, scale from then on), oldest first."""
        return self.rule.history

    def get_scale(self) -> float:
        return self.rule.scale

    def scale(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * self.parts[0].scale

    def move_to(self, scale: float) -> None:
        """For one pass: neither counted nor written into the history."""
        self.rule.scale = self.rule.bounded(scale)
        self._publish()

    def report(self, number: int, found_inf: bool) -> None:
        """What a part found in its gradients; the last to report moves the scale."""
        if number in self._reports:
            raise Fp16PatchError(
                f"part {number} of {len(self.parts)} of this optimizer was stepped again before the others",
                code="optimizer-step-out-of-order",
                allowed="one step of the whole optimizer",
                next_step="call step() of the ChainedOptimizer, not of one in it",
            )
        self._reports[number] = found_inf
        if len(self._reports) == len(self.parts):
            skipped = any(self._reports.values())
            self.forget_reports()
            if self.look is not None and not skipped:
                self.seen = self.look()
            self.rule.update(skipped=skipped)
            self._publish()

    def forget_reports(self) -> None:
        """Of a step that ended in an exception."""
        self._reports.clear()

    def load(self, number: int, saved: State) -> None:
        """What a part was saved with. Parts that had drifted apart, as Megatron's own do, go on at the lowest scale."""
        if number in self._loaded:
            self._loaded.clear()
        self._loaded[number] = saved
        self.rule.load_state_dict(min(self._loaded.values(), key=lambda state: float(state["scale"])))
        self._publish()

    def take_loaded(self) -> list[State]:
        """What has been loaded since this was last asked, one a part; the lowest scale first."""
        loaded = sorted(self._loaded.values(), key=lambda state: float(state["scale"]))
        self._loaded.clear()
        return loaded

    def start_anew(self) -> None:
        """At ``init_scale``, nothing counted."""
        self.rule = ScaleRule(self.settings)
        self._publish()

    def _publish(self) -> None:
        for part in self.parts:
            part.show(self.rule)


class PartScaler(DynamicGradScaler):  # type: ignore[misc]  # megatron is read through Any
    """To one part its own scaler, with Megatron's names; what it shows is the governor's."""

    def __init__(self, governor: Governor, number: int) -> None:
        settings = governor.settings
        self._governor, self._number = governor, number
        self._given: dict[str, Any] | None = None
        super().__init__(
            initial_scale=settings.init_scale,
            min_scale=settings.min_scale,
            growth_factor=settings.growth_factor,
            backoff_factor=settings.backoff_factor,
            growth_interval=settings.growth_interval,
            hysteresis=settings.hysteresis,
        )

    def show(self, rule: ScaleRule) -> None:
        self._growth_tracker, self._hysteresis_tracker = rule.growth_tracker, rule.hysteresis_left
        # A new tensor, as Megatron makes one: somebody may hold the old one.
        self._scale = torch.full_like(self.scale, rule.scale)

    def update(self, found_inf: bool) -> None:
        self._governor.report(self._number, bool(found_inf))

    def state_dict(self) -> dict[str, Any]:
        """Megatron's own, which loads without this package, and one entry more."""
        self._given = super().state_dict() | saved_state.entry(self._governor.rule.state_dict())
        return self._given

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of either; this one's settings hold. Raises :class:`Fp16PatchError` on anything else."""
        saved = saved_state.read(state_dict, self._governor.settings)
        # Before it loads from a checkpoint in pieces, Megatron loads what it has just been given here.
        prepares = state_dict is self._given and saved == self._governor.rule.state_dict()
        if saved is not None and not prepares:
            self._governor.load(self._number, saved)
