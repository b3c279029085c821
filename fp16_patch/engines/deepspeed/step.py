# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO engines with our scaler: settings that hold, a scale that stands still, skips everybody sees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fp16_patch.engines.deepspeed import releases
from fp16_patch.errors import several
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision

_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
_UPDATE = "_fp16_patch_update"  # on an engine: what its last step() was

Engine = Any  # deepspeed.DeepSpeedEngine, never imported here


def scaler_of(engine: Engine) -> Any:
    """The engine's :class:`BoundedLossScaler`, or None where it trains without (BF16, FP32, a reference)."""
    from fp16_patch.engines.deepspeed.scaler import BoundedLossScaler

    scaler = getattr(getattr(engine, "optimizer", None), "loss_scaler", None)
    return scaler if isinstance(scaler, BoundedLossScaler) else None


def last_update(engine: Engine) -> Any:
    """The :class:`~fp16_patch.loss_scaling.update.Update` that the engine's last ``step()`` was; None where it only
    accumulated, or has no scaler."""
    return getattr(engine, _UPDATE, None)


def install_scaler(original: Callable[..., Any]) -> Callable[..., Any]:
    """Our scaler in place of DeepSpeed's, in an FP16 engine; or a refusal."""

    @functools.wraps(original)
    def _configure_optimizer(self: Engine, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        precision = Precision.current()
        if precision.train_dtype == "fp16":
            from fp16_patch.engines.deepspeed.refusals import refusals

            if errors := refusals(self):
                raise several(errors)
            if self.fp16_enabled():
                from fp16_patch.engines.deepspeed.scaler import BoundedLossScaler
                from fp16_patch.loss_scaling.gradients import embedding_param_ids

                embeddings = embedding_param_ids(self.module)
                self.optimizer.loss_scaler = BoundedLossScaler(precision.loss_scaling, embeddings)
        return result

    return _configure_optimizer


def watch_updates(original: Callable[..., Any]) -> Callable[..., Any]:
    """The scale stands still for the step; no norm of a step that was not made; the stop after too many skips."""

    @functools.wraps(original)
    def step(self: Engine, *args: Any, **kwargs: Any) -> Any:
        scaler = scaler_of(self)
        if scaler is None:
            return original(self, *args, **kwargs)
        from fp16_patch.engines.deepspeed import gradients, replay
        from fp16_patch.loss_scaling.update import Update

        health: list[tuple[float | None, float | None]] = []
        before, loss_scale = scaler.counts.updates, scaler.get_scale()
        setattr(self, _UPDATE, None)
        with scaler.standing_still(lambda: health.append(gradients.measure_headroom(self, scaler))):
            result = original(self, *args, **kwargs)
        if scaler.counts.updates > before:  # not only accumulated
            skipped = scaler.counts.consecutive > 0
            if skipped:  # DeepSpeed leaves the last one there
                self._global_grad_norm = self.optimizer._global_grad_norm = None
            norm = None if skipped else float(self._global_grad_norm)
            headroom, share = health[0] if health else (None, None)
            update = Update(
                skipped=skipped,
                grad_norm=norm,
                loss_scale=loss_scale,
                headroom_bits=headroom,
                underflow_share=share,
            )
            setattr(self, _UPDATE, update)
            replay.stop_after_too_many(self, scaler, update)
        return result

    return step


def _patch(name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=name,
        target=target,
        kind="wrap",
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="trainer rank",
        **kwargs,
    )


PATCHES: tuple[Patch, ...] = (
    _patch(
        "deepspeed-loss-scaler",
        f"{_ENGINE}._configure_optimizer",
        make=install_scaler,
        parameters=("self",),
        reason="DeepSpeed's scaler has no ceiling, ends the run at the floor without a reason, and lets a first "
        "overflow pass without lowering the scale. A subclass of it takes its place in FP16 engines; others are "
        "left alone",
        upstream="deepspeed runtime/fp16/loss_scaler.py:183-237",
        remove_when="DeepSpeed bounds its scaler and takes hysteresis and factors as settings",
    ),
    _patch(
        "deepspeed-step",
        f"{_ENGINE}.step",
        make=watch_updates,
        parameters=("self",),
        reason="DeepSpeed grows the scale before it divides the gradients by it, so that the optimizer sees half of "
        "them, and ZeRO-3 reports half the norm; a skipped step keeps the norm of the one before. The growth is held "
        "back until the step is over",
        upstream="deepspeed runtime/zero/stage_1_and_2.py:2304 and 2446, stage3.py:2560, 2626 and 2703",
        remove_when="DeepSpeed unscales by the scale that the loss was multiplied by",
    ),
)
