# SPDX-License-Identifier: Apache-2.0
"""torch's ShardedGradScaler with a bounded scale.

torch's own (torch 2.13, distributed/fsdp/sharded_grad_scaler.py) has three faults. The scale halves without a floor:
after 200 bad updates it is 0.0 and its inverse infinite, so the next good gradients become NaN with found_inf unset,
and the optimizer steps on them. The scale grows without a ceiling. Nothing reports a skipped step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch.amp.grad_scaler import OptState
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from fp16_patch.engines.fsdp.gradients import read_layout
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling.gradients import Layout
from fp16_patch.loss_scaling.scaler_base import ScalerBase
from fp16_patch.precision.loss_scaling import LossScaling


class FsdpLossScaler(ShardedGradScaler, ScalerBase):  # type: ignore[misc]  # torch is read through Any
    """Scale losses with torch's interface: ``scale``, ``unscale_``, ``step``, ``update``, ``state_dict``.

    Args:
        settings: Bounds, factors and interval of the scale.
        device: Device type of the losses.
        process_group: Ranks that agree on every step; None for all ranks.
        module: The trained module, wrapped already; :func:`~fp16_patch.engines.fsdp.step.clip_and_step` needs it.

    Raises:
        Fp16PatchError: torch turned its scaler off for ``device``.
    """

    def __init__(
        self,
        settings: LossScaling,
        device: str = "cuda",
        process_group: Any = None,
        module: torch.nn.Module | None = None,
    ) -> None:
        ShardedGradScaler.__init__(
            self,
            device=device,
            init_scale=settings.init_scale,
            growth_factor=settings.growth_factor,
            backoff_factor=settings.backoff_factor,
            growth_interval=settings.growth_interval,
            process_group=process_group,
        )
        if not self.is_enabled():  # torch only warns, and then does not scale at all
            raise Fp16PatchError(
                f"no loss scaling on device type {device!r}: torch turned its scaler off",
                code="device-not-supported",
                allowed="a device type that torch finds here, or cpu",
                next_step="check that CUDA is available in this process",
            )
        world_size = dist.get_world_size(process_group) if dist.is_initialized() else 1
        self.layout = Layout(world_size) if module is None else read_layout(module, world_size)
        ScalerBase.__init__(self, settings)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Move the scale as torch does, but by :class:`ScaleRule`: bounded, and with hysteresis."""
        self._check_scale_growth_tracker("update")  # torch's own: a loss was scaled
        self._read_tensors()
        if new_scale is None:
            self.end_update(skipped=self._any_found_inf())
        elif math.isnan(new_scale):
            raise self._unusable(math.nan)
        else:
            self.rule.set_scale(float(new_scale))
        super().update(self.rule.scale)  # sets the scale; forgets this iteration's optimizers
        self._growth_tracker.fill_(self.rule.growth_tracker)

    def _read_tensors(self) -> None:
        """Take over scale and growth tracker from torch's device tensors, which a program may have set."""
        self.rule.scale, self.rule.growth_tracker = self.get_scale(), self._get_growth_tracker()

    def _any_found_inf(self) -> bool:
        found = [t for state in self._per_optimizer_states.values() for t in state["found_inf_per_device"].values()]
        if not found:
            raise AssertionError("No inf checks were recorded prior to update.")  # torch's own
        return any(t.item() for t in found)

    def record(self, optimizer: torch.optim.Optimizer, *, finite: bool) -> None:
        """Record whether the optimizer's gradients are finite, in place of ``unscale_``.

        Pass the same value on every rank. Raises :class:`Fp16PatchError` if the gradients are unscaled already.
        """
        self.ensure_scale()
        state = self._per_optimizer_states[id(optimizer)]
        if state["stage"] is not OptState.READY:
            raise Fp16PatchError(
                "these gradients are already divided by the loss scale; clip_and_step would divide them again",
                code="gradients-unscaled-twice",
                allowed="either unscale_ and step, or clip_and_step, in one update",
                next_step="remove the call of unscale_, or of step, before clip_and_step",
            )
        state["found_inf_per_device"] = {self._scale.device: self._scale.new_tensor(float(not finite))}

    def ensure_scale(self) -> torch.Tensor:
        """Return the scale as a tensor, also on a rank that has not scaled a loss. Raise if it is out of bounds."""
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(torch.device(self._device))
        scale = self.get_scale()
        if not self.settings.min_scale <= scale <= self.settings.max_scale:  # NaN too
            raise self._unusable(scale)
        return self._scale

    def _unusable(self, scale: float) -> Fp16PatchError:
        return Fp16PatchError(
            f"the loss scale is {scale}: gradients cannot be divided by it",
            code="loss-scale-unusable",
            allowed=f"{self.settings.min_scale:g} to {self.settings.max_scale:g}",
            next_step="do not set the scaler's scale by hand; resume from a checkpoint",
        )

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, as torch does, after a check of the scale."""
        self.ensure_scale()
        super().unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Step as torch does, and skip correctly for a fused optimizer too.

        torch leaves the skip to a fused optimizer. Without ``unscale_`` no other rank is asked then. The kernels
        expect a found_inf of exactly 1, not a sum over ranks, and another shape than the sharded scaler's.
        """
        state = self._per_optimizer_states[id(optimizer)]
        if state["stage"] is OptState.READY:
            self.unscale_(optimizer)
        result: float | None
        if state["stage"] is OptState.UNSCALED and getattr(optimizer, "_step_supports_amp_scaling", False):
            result = self._maybe_opt_step(optimizer, state, *args, **kwargs)
            state["stage"] = OptState.STEPPED
        else:
            result = super().step(optimizer, *args, **kwargs)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return :meth:`ScaleRule.state_dict`."""
        self._read_tensors()
        return self.rule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state by :meth:`ScaleRule.load_state_dict`."""
        self.rule.load_state_dict(state_dict)
        self._init_scale, self._init_growth_tracker = self.rule.scale, self.rule.growth_tracker
        if self._scale is not None:
            self._scale.fill_(self.rule.scale)
            self._growth_tracker.fill_(self.rule.growth_tracker)

    def _show_scale(self, scale: float) -> None:
        self.ensure_scale().fill_(scale)
