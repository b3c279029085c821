# SPDX-License-Identifier: Apache-2.0
"""Take one update of a Megatron optimizer with this package's loss scaler."""

from __future__ import annotations

from fp16_patch.engines.megatron.sub_optimizers import Optimizer, require_loss_scaler
from fp16_patch.errors import Fp16PatchError
from fp16_patch.loss_scaling.update import Update


def take_step(optimizer: Optimizer) -> Update:
    """Step ``optimizer`` and return what happened; collective over all ranks, with the same result on each of them.

    Call it in place of ``optimizer.step()``. A skipped update moves nothing but the scale. The caller must not step
    the learning-rate schedule then.

    Raises:
        Fp16PatchError: The optimizer has no loss scaler of this package, or its scaler and Megatron disagree.
    """
    scaler = require_loss_scaler(optimizer)
    scaler.clear_reports()
    before, loss_scale = scaler.counts.updates, scaler.get_scale()
    made, norm, _ = optimizer.step()
    updates, skips = scaler.counts.updates - before, scaler.counts.consecutive
    if updates != 1 or made != (skips == 0):
        raise Fp16PatchError(
            f"Megatron's step (made: {made}) and its scaler ({updates} updates, {skips} skips in a row) disagree",
            code="scaler-disagrees",
            next_step="report this with your optimizer's class and configuration",
        )
    if made and not hasattr(optimizer, "chained_optimizers") and not optimizer.config.clip_grad:
        norm = optimizer.get_grad_norm()  # Megatron returns 0 where it does not clip
    result: Update = scaler.describe_update(loss_scale, norm)
    return result
