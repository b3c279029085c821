# SPDX-License-Identifier: Apache-2.0
"""One update of a governed Megatron optimizer, and what became of it."""

from __future__ import annotations

from fp16_patch.engines.megatron.scaler_setup import required_governor
from fp16_patch.engines.megatron.sub_optimizers import Optimizer
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling.update import Update


def take_step(optimizer: Optimizer) -> Update:
    """In place of ``optimizer.step()``; collective over all ranks, and the same on each of them.

    On a skipped update nothing has moved but the scale. The schedule of the learning rate is the caller's to hold.
    """
    governor = required_governor(optimizer)
    governor.forget_reports()
    before, loss_scale = governor.counts.updates, governor.get_scale()
    made, norm, _ = optimizer.step()
    updates, skips = governor.counts.updates - before, governor.counts.consecutive
    if updates != 1 or made != (skips == 0):
        raise Fp16PatchError(
            f"Megatron's step (made: {made}) and its scaler ({updates} updates, {skips} skips in a row) disagree",
            code="scaler-disagrees",
            next_step="report this with your optimizer's class and configuration",
        )
    if not made:
        return Update(skipped=True, grad_norm=None, loss_scale=loss_scale)
    if not hasattr(optimizer, "chained_optimizers") and not optimizer.config.clip_grad:
        norm = optimizer.get_grad_norm()  # Megatron says 0 where it does not clip
    headroom, share = governor.seen
    return Update(
        skipped=False,
        grad_norm=float(norm),
        loss_scale=loss_scale,
        headroom_bits=headroom,
        underflow_share=share,
    )
