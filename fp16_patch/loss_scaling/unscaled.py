# SPDX-License-Identifier: Apache-2.0
"""Count the losses that are not finite of a model that is trained without a loss scale, in BF16 or FP32."""

from __future__ import annotations

from fp16_patch.loss_scaling.diagnosis.advice import NOT_PRECISION, where_to_look
from fp16_patch.loss_scaling.loss_check import first_bad_loss
from fp16_patch.loss_scaling.scaler_base import ScalerBase
from fp16_patch.loss_scaling.skip_limit import diverged, exceeded_limit
from fp16_patch.loss_scaling.update import describe_losses
from fp16_patch.precision import Precision


class UnscaledUpdates(ScalerBase):
    """Count updates as a scaler does. Nothing is scaled, and only a loss that is not finite skips an update."""

    def __init__(self) -> None:
        super().__init__(Precision.current().loss_scaling)

    def any_bad_loss(self) -> bool:
        """Return whether a loss of any rank since the last update is not finite; collective."""
        return first_bad_loss(self.bad_loss_here, self.process_group) is not None

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the last update."""
        return describe_losses(self.bad_loss is not None, self.counts)

    def stop_after_too_many(self) -> None:
        """Raise :class:`Fp16PatchError`, on every rank, if too many updates were skipped."""
        if self.bad_loss is not None and (limit := exceeded_limit(self.rule)) is not None:
            found = f"the loss is not finite: {self.bad_loss.detail}"
            raise diverged(limit, self.bad_loss.role, found, f"{where_to_look(self.bad_loss)}; {NOT_PRECISION}")
