# SPDX-License-Identifier: Apache-2.0
"""Install our loss scaler in DeepSpeed's ZeRO engines, keep the scale constant during a step, and report skips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.deepspeed.releases import RELEASE
from fp16_patch.errors import combine_errors
from fp16_patch.patching import ProcessKind, wrap
from fp16_patch.precision import Precision

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.scaler_base import ScalerBase
    from fp16_patch.loss_scaling.update import Update

_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"

_SKIP: dict[str, Any] = {
    "release": RELEASE,
    "processes": {ProcessKind.TRAINER_RANK},
    "engine": "deepspeed",
    "reason": "without ZeRO, and in ZeRO-1 with FP32 accumulation, these optimizers step on NaN gradients in BF16: a "
    "loss that is not finite skips the update",
    "remove_when": "DeepSpeed skips a step whose gradients are not finite, in BF16 too",
}

Engine = Any  # deepspeed.DeepSpeedEngine, never imported here


def get_loss_scaler(engine: Engine) -> Any:
    """Return the engine's :class:`DeepSpeedLossScaler`, or None if it trains without one (BF16, FP32, reference)."""
    from fp16_patch.engines.deepspeed.scaler import DeepSpeedLossScaler

    scaler = getattr(getattr(engine, "optimizer", None), "loss_scaler", None)
    return scaler if isinstance(scaler, DeepSpeedLossScaler) else None


def last_update(engine: Engine) -> Update | None:
    """Return the update that the last ``step()`` made; None if it only accumulated or the engine has no scaler."""
    return getattr(get_loss_scaler(engine), "last_update", None)


@wrap(
    f"{_ENGINE}._configure_optimizer",
    name="deepspeed-loss-scaler",
    release=RELEASE,
    processes={ProcessKind.TRAINER_RANK},
    engine="deepspeed",
    reason="DeepSpeed's scaler has no ceiling, ends the run at the floor without a reason, and does not lower the "
    "scale on a first overflow. A subclass of it takes its place in FP16 engines. Others do not change",
    upstream="deepspeed runtime/fp16/loss_scaler.py:183-237",
    remove_when="DeepSpeed bounds its scaler and takes hysteresis and factors as settings",
)
def install_loss_scaler(original: Any, self: Engine, *args: Any, **kwargs: Any) -> Any:
    """Install our scaler in an FP16 engine, or refuse the engine."""
    result = original(self, *args, **kwargs)
    precision = Precision.current()
    if precision.train_dtype == "fp16":
        from fp16_patch.engines.deepspeed.refusals import refusals

        if errors := refusals(self):
            raise combine_errors(errors)
        if self.fp16_enabled():
            from fp16_patch.engines.deepspeed.scaler import DeepSpeedLossScaler
            from fp16_patch.loss_scaling.gradients import embedding_param_ids

            embeddings = embedding_param_ids(self.module)
            self.optimizer.loss_scaler = DeepSpeedLossScaler(precision.loss_scaling, embeddings)
    return result


@wrap(
    f"{_ENGINE}.step",
    name="deepspeed-step",
    release=RELEASE,
    processes={ProcessKind.TRAINER_RANK},
    engine="deepspeed",
    reason="DeepSpeed grows the scale before it divides the gradients by it, so the optimizer sees half of them, and "
    "ZeRO-3 reports half the norm. A skipped step keeps the norm of the step before. The growth is deferred "
    "until the step is over. In BF16, ZeRO-3 steps on NaN: a loss that is not finite skips the update",
    upstream="deepspeed runtime/zero/stage_1_and_2.py:2304 and 2446, stage3.py:2560, 2626 and 2703",
    remove_when="DeepSpeed unscales by the scale that the loss was multiplied by",
)
def track_updates(original: Any, self: Engine, *args: Any, **kwargs: Any) -> Any:
    """Keep the scale constant during the step, drop the norm of a skipped step, and abort after too many skips."""
    scaler = get_loss_scaler(self)
    if scaler is None:
        return _step_without_scale(original, self, *args, **kwargs)
    from fp16_patch.engines.deepspeed import replay
    from fp16_patch.engines.deepspeed.gradients import measure_headroom

    scaler.last_update = None
    updates, loss_scale = scaler.counts.updates, scaler.get_scale()
    with scaler.defer_scale_update(on_finite_gradients=lambda: measure_headroom(self, scaler)):
        result = original(self, *args, **kwargs)
    if scaler.counts.updates == updates:  # it only accumulated
        return result
    if scaler.counts.consecutive:  # skipped: DeepSpeed keeps the last norm
        self._global_grad_norm = self.optimizer._global_grad_norm = None
    scaler.last_update = scaler.describe_update(loss_scale, self._global_grad_norm)
    replay.stop_after_too_many(self, scaler, scaler.last_update)
    return result


def losses_of(engine: Engine) -> ScalerBase:
    """Return what counts the losses of ``engine`` that are not finite: its scaler, if it has one."""
    from fp16_patch.loss_scaling.unscaled import UnscaledUpdates

    scaler: ScalerBase | None = get_loss_scaler(engine)
    return attached(engine, UnscaledUpdates) if scaler is None else scaler


def _step_without_scale(original: Any, engine: Engine, *args: Any, **kwargs: Any) -> Any:
    """Step in BF16 or FP32. Skip the update on every rank if a loss of one of them is not finite."""
    if not engine.is_gradient_accumulation_boundary():
        return original(engine, *args, **kwargs)
    losses: Any = losses_of(engine)
    skip = losses.any_bad_loss()
    # ZeRO-1 and ZeRO-2 look for overflows in BF16 too and overwrite it. ZeRO-3 does not, and skips if it is set, as
    # skip_unscaled_step does. The engine reads it after the step, and leaves out that of the LR schedule.
    engine.optimizer.overflow = skip
    result = original(engine, *args, **kwargs)
    if skip:  # DeepSpeed keeps the last norm
        engine._global_grad_norm = engine.optimizer._global_grad_norm = None
    losses.end_update(skipped=skip)
    losses.stop_after_too_many()
    return result


@wrap(
    "deepspeed.runtime.bf16_optimizer:BF16_Optimizer.step",
    name="deepspeed-skip-zero-1-step",
    **_SKIP,
    upstream="deepspeed runtime/bf16_optimizer.py:303",
)
@wrap(
    "deepspeed.runtime.fp16.fused_optimizer:FP16_Optimizer.step",
    name="deepspeed-skip-fused-step",
    **_SKIP,
    upstream="deepspeed runtime/fp16/fused_optimizer.py:245",
)
def skip_unscaled_step(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Skip a step in BF16 that :func:`_step_without_scale` says to skip. The engine drops the gradients after it."""
    return None if getattr(self, "overflow", False) else original(self, *args, **kwargs)
