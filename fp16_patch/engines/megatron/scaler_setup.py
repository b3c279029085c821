# SPDX-License-Identifier: Apache-2.0
"""One scaler for all parts of a Megatron optimizer: settings that hold, one scale, one decision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fp16_patch.engines.megatron import gradients
from fp16_patch.engines.megatron.refusals import refusals
from fp16_patch.engines.megatron.sub_optimizers import Optimizer, parts_of
from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.loss_scaling import LossScaling

_GOVERNOR = "_fp16_patch_governor"  # on an optimizer


def govern(optimizer: Optimizer, settings: LossScaling, model: Sequence[Any]) -> Any:
    """Put one scaler with ``settings`` in place of the parts' own; returns its :class:`Governor`.

    ``model`` is what ``get_megatron_optimizer`` was given: the chunks, wrapped in DistributedDataParallel. To be called
    before a checkpoint is loaded. Raises :class:`Fp16PatchError` where FP16 would not be what it says.
    """
    if errors := refusals(optimizer, model):
        raise several(errors)
    from fp16_patch.engines.megatron.scaler import Governor

    parts = parts_of(optimizer)
    governor = Governor(settings, model, len(parts))
    governor.look = partial(gradients.health_of, parts, governor, gradients.lookups_of(model))
    for part, seen in zip(parts, governor.parts, strict=True):
        part.grad_scaler = seen
    for chunk in model:
        # Megatron's schedules ask it for the scale of the loss, and of the auxiliary losses of experts.
        chunk.config.grad_scale_func = optimizer.scale_loss
    setattr(optimizer, _GOVERNOR, governor)
    return governor


def governor_of(optimizer: Optimizer) -> Any:
    """The :class:`Governor`, or None where the optimizer trains without (BF16, FP32)."""
    return getattr(optimizer, _GOVERNOR, None)


def required_governor(optimizer: Optimizer) -> Any:
    """As :func:`governor_of`, or an error."""
    if (governor := governor_of(optimizer)) is None:
        raise Fp16PatchError(
            "this Megatron optimizer was not given this package's loss scaling",
            code="loss-scaling-missing",
            allowed="an optimizer that govern() was called with",
            next_step="call fp16_patch.engines.megatron.scaler_setup.govern where it is built",
        )
    return governor
