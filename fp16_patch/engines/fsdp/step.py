# SPDX-License-Identifier: Apache-2.0
"""Unscale, clip and step in as few passes over the gradients as possible.

One pass finds the norm, and with it every inf and NaN. 1/scale and the clip coefficient are one factor. torch's
fused optimizers apply that factor themselves (``grad_scale``); the others need one multiplication.
"""

from __future__ import annotations

from typing import Any

import torch

from fp16_patch.engines.fsdp.gradients import read_gradients
from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.loss_scaling.gradient_statistics import gather_statistics
from fp16_patch.loss_scaling.update import Update

EPSILON = 1e-6
"""The epsilon of torch.nn.utils.clip_grad_norm_."""


def clip_and_step(
    scaler: FsdpLossScaler,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    *,
    headroom: bool = True,
) -> Update:
    """Unscale, clip and step, and update the scale.

    Equal to ``unscale_``, ``clip_grad_norm_``, ``step`` and ``update`` up to rounding. Collective over the scaler's
    process group. The gradients are overwritten: call ``zero_grad`` afterwards.

    Args:
        scaler: The scaler that the loss was multiplied by.
        optimizer: Holds float32 master weights and gradients.
        max_norm: Largest 2-norm of the unscaled gradients after clipping.
        headroom: Whether to measure headroom and underflow too.

    Raises:
        Fp16PatchError: See :func:`~fp16_patch.engines.fsdp.gradients.read_gradients`.
    """
    scale = scaler.ensure_scale()
    with torch.no_grad():
        gradients = list(read_gradients(optimizer, scaler.layout))
    statistics = gather_statistics(
        gradients,
        scale.device,
        scaler.process_group,
        headroom=headroom,
        offset=scaler.counts.updates,
        num_slices=scaler.headroom.num_slices,
    )
    loss_scale = scaler.get_scale()
    grad_norm = statistics.norm / loss_scale
    scaler.record(optimizer, finite=statistics.finite)
    bits = share = None
    if statistics.finite:
        bits, share = scaler.headroom.add(statistics, loss_scale)
        clip = min(1.0, max_norm / (grad_norm + EPSILON))
        with torch.no_grad():
            _step(optimizer, [gradient.local for gradient in gradients], clip / loss_scale)
    scaler.update()
    return Update(
        skipped=not statistics.finite,
        grad_norm=grad_norm if statistics.finite else None,
        loss_scale=loss_scale,
        statistics=statistics,
        headroom_bits=bits,
        underflow_share=share,
        loss_not_finite=scaler.bad_loss is not None,
    )


def _step(optimizer: Any, gradients: list[torch.Tensor], factor: float) -> None:
    """Step once on ``factor`` times the gradients."""
    if getattr(optimizer, "_step_supports_amp_scaling", False) and gradients and factor:
        # torch's contract with its fused optimizers (GradScaler.step): attributes for one step, divided by.
        optimizer.grad_scale = torch.tensor(1.0 / factor, dtype=torch.float32, device=gradients[0].device)
        optimizer.found_inf = torch.zeros_like(optimizer.grad_scale)
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
        return
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for gradient in gradients:
        by_device.setdefault(gradient.device, []).append(gradient)
    for same_device in by_device.values():
        torch._foreach_mul_(same_device[::-1], factor)  # the last gradients that were read are still in the cache
    optimizer.step()
