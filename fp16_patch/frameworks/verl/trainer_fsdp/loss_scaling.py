# SPDX-License-Identifier: Apache-2.0
"""Patches of verl's FSDP engine: unscale, clip and step in one pass over the gradients with our scaler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.frameworks.verl import trainer
from fp16_patch.frameworks.verl.releases import FSDP_RANK
from fp16_patch.patching import replace, wrap
from fp16_patch.precision import Precision

_ENGINE = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"

Engine = Any  # verl.workers.engine.fsdp.transformer_impl.FSDPEngine, never imported here


def new_scaler(module: Any) -> Any:
    """Return a :class:`~fp16_patch.engines.fsdp.scaler.FsdpLossScaler` with the flag's settings for ``module``."""
    from verl.utils.device import get_device_name

    from fp16_patch.engines.fsdp.scaler import FsdpLossScaler

    return FsdpLossScaler(Precision.current().loss_scaling, get_device_name(), module=module)


@replace(
    f"{_ENGINE}.optimizer_step",
    name="fsdp-optimizer-step",
    **FSDP_RANK,
    maker=True,
    fingerprint="a11850ea3680ba75",
    reason="torch's scaler has no floor: it reaches 0.0 and the optimizer steps on NaN; unscale, inf check, norm "
    "and clip are five passes over the gradients. Ours is bounded, one pass, and returns no norm on a skip; "
    "engines without a scaler run verl's own function",
    upstream="verl workers/engine/fsdp/transformer_impl.py:785-834",
    remove_when="torch bounds its scaler and verl reports skips",
)
def clip_and_step(original: Callable[..., Any]) -> Callable[..., Any]:
    """Unscale, clip and step in one pass. Return the gradient norm, None on a skipped update."""

    def optimizer_step(self: Engine) -> float | None:
        from fp16_patch.engines.fsdp import step

        scaler = trainer.scaler_of(self)
        if scaler is None:
            norm: float = original(self)
            return norm
        update = step.clip_and_step(scaler, self.optimizer, self.optimizer_config.clip_grad)
        return trainer.record_update(self, update)

    return optimizer_step


@wrap(f"{_ENGINE}.lr_scheduler_step", name="fsdp-lr-scheduler-step", **FSDP_RANK, **trainer.LR_SCHEDULE)
def lr_scheduler_step(original: Callable[..., Any], self: Engine) -> Any:
    """Hold the LR schedule when nothing was updated."""
    return trainer.step_lr_scheduler(original, self)
