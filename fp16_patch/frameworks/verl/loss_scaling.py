# SPDX-License-Identifier: Apache-2.0
"""verl's FSDP engine with our scaler: one pass over the gradients, skips everybody hears of, a stop with a reason."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.frameworks.verl import releases
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision
from fp16_patch.proof.dtypes import agree
from fp16_patch.proof.observed import seen

_ENGINE = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"
_UPDATE = "_fp16_patch_update"  # on an engine: its last Update
_MOVED = "_fp16_patch_moved"  # on an engine: weights have changed since its LR scheduler last stepped

Engine = Any  # verl.workers.engine.fsdp.transformer_impl.FSDPEngine, never imported here


def new_scaler(module: Any) -> Any:
    """A :class:`~fp16_patch.loss_scaling.scaler.LossScaler` with the flag's settings for a module wrapped already."""
    from verl.utils.device import get_device_name

    from fp16_patch.loss_scaling.scaler import LossScaler

    return LossScaler(Precision.in_force().loss_scaling, get_device_name(), module=module)


def scaler_of(engine: Engine) -> Any:
    """The engine's :class:`LossScaler`, or None where it trains without (BF16, FP32, a reference)."""
    from fp16_patch.loss_scaling.scaler import LossScaler

    scaler = getattr(engine, "scaler", None)
    return scaler if isinstance(scaler, LossScaler) else None


def clip_and_step(original: Callable[..., Any]) -> Callable[..., Any]:
    """Unscale, clip and step in one pass. Returns the gradient norm, None on a skipped update."""

    @functools.wraps(original)
    def optimizer_step(self: Engine) -> float | None:
        from fp16_patch.loss_scaling import step

        scaler = scaler_of(self)
        if scaler is None:
            norm: float = original(self)
            return norm
        update = step.clip_and_step(scaler, self.optimizer, self.optimizer_config.clip_grad)
        setattr(self, _UPDATE, update)
        setattr(self, _MOVED, getattr(self, _MOVED, False) or not update.skipped)
        return update.grad_norm

    return optimizer_step


def hold_lr_on_skips(original: Callable[..., Any]) -> Callable[..., Any]:
    """Move the schedule only when weights have moved since it last did."""

    @functools.wraps(original)
    def lr_scheduler_step(self: Engine) -> Any:
        if scaler_of(self) is None:
            return original(self)
        moved = getattr(self, _MOVED, False)
        setattr(self, _MOVED, False)
        return original(self) if moved else self.lr_scheduler.get_last_lr()[0]

    return lr_scheduler_step


def publish_updates(original: Callable[..., Any]) -> Callable[..., Any]:
    """Metrics of the scaler into verl's own stream; the traced update; the stop after too many skips."""

    @functools.wraps(original)
    def train_batch(self: Engine, data: Any, loss_function: Callable[..., Any]) -> Any:
        from fp16_patch.frameworks.verl import overflow
        from fp16_patch.loss_scaling.metrics import describe

        scaler = scaler_of(self)
        if scaler is not None:
            overflow.trace_if_asked(self, scaler, data, loss_function)
        outputs = original(self, data, loss_function)
        # Non-finite ones are gone already where there is no scaler: verl drops them.
        if gradients := [p.grad.dtype for p in self.module.parameters() if p.grad is not None]:
            seen(self)["gradients"] = agree(gradients)
        if scaler is not None:
            update = getattr(self, _UPDATE)
            if self.is_mp_src_rank_with_outputs():
                metrics = outputs["metrics"]
                if update.skipped:
                    metrics.pop("grad_norm")  # there is none
                metrics |= {name: [value] for name, value in describe(update, scaler.counts).items()}
            overflow.stop_after_too_many(self, scaler, update, data, loss_function)
        return outputs

    return train_batch


def _patch(name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=name,
        target=target,
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="trainer rank",
        **kwargs,
    )


PATCHES: tuple[Patch, ...] = (
    _patch(
        "fsdp-optimizer-step",
        f"{_ENGINE}.optimizer_step",
        kind="replace",
        make=clip_and_step,
        fingerprint="a11850ea3680ba75",
        reason="torch's scaler has no floor: it reaches 0.0 and the optimizer steps on NaN; unscale, inf check, norm "
        "and clip are five passes over the gradients. Ours is bounded, one pass, and returns no norm on a skip; "
        "engines without a scaler run verl's own function",
        upstream="verl workers/engine/fsdp/transformer_impl.py:785-834",
        remove_when="torch bounds its scaler and verl reports skips",
    ),
    _patch(
        "fsdp-lr-scheduler-step",
        f"{_ENGINE}.lr_scheduler_step",
        kind="wrap",
        make=hold_lr_on_skips,
        parameters=("self",),
        reason="verl steps the LR schedule on skipped updates too",
        upstream="verl workers/engine_workers.py, TrainingWorker.train_batch",
        remove_when="verl holds the schedule when nothing was updated",
    ),
    _patch(
        "loss-scale-metrics",
        "verl.workers.engine.base:BaseEngine.train_batch",
        kind="wrap",
        make=publish_updates,
        parameters=("self", "data", "loss_function"),
        reason="verl reports neither the loss scale nor a skipped update, logs an infinite norm, and goes on for ever",
        upstream="verl workers/engine/fsdp/transformer_impl.py:817-827",
        remove_when="verl logs the loss scale and skipped updates and stops by itself",
    ),
)
