# SPDX-License-Identifier: Apache-2.0
"""Patches of OpenRLHF's DeepSpeed strategy and of its actor's and critic's training steps.

The scaler, the repaired step and the checkpoints are DeepSpeed's matter (``engines/deepspeed``); here they get
their settings, and what became of each update reaches OpenRLHF's metrics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fp16_patch.engines.deepspeed import replay
from fp16_patch.engines.deepspeed.config import configured
from fp16_patch.engines.deepspeed.precision import describe_engine
from fp16_patch.engines.deepspeed.step import last_update, scaler_of
from fp16_patch.frameworks.openrlhf import releases
from fp16_patch.frameworks.openrlhf.ema import average_in_fp32
from fp16_patch.frameworks.openrlhf.engines import engine_of, watch
from fp16_patch.loss_scaling.update import combined, describe
from fp16_patch.patching import Patch
from fp16_patch.precision import Precision
from fp16_patch.report.observed_dtypes import recorded_dtypes

Strategy = Any  # openrlhf.utils.deepspeed.DeepspeedStrategy
Trainer = Any  # openrlhf.trainer.ray.ppo_actor.ActorPPOTrainer, or ppo_critic's

IN_BF16 = "train in BF16: --ds.param_dtype bf16"
_UPDATES = "_fp16_patch_updates"  # on a trainer: (update, metrics of it) since ppo_train began
_REPEATING = "_fp16_patch_repeating"  # on a strategy: a batch is run again to be looked at, and nothing may step


def with_our_loss_scaling(original: Callable[..., Any]) -> Callable[..., Any]:
    """Our settings in DeepSpeed's configuration, so that what it prints and saves is true."""

    @functools.wraps(original)
    def get_ds_train_config(self: Strategy, *args: Any, **kwargs: Any) -> dict[str, Any]:
        config: dict[str, Any] = original(self, *args, **kwargs)
        if config["fp16"]["enabled"]:
            config = configured(config, Precision.current().loss_scaling)
        return config

    return get_ds_train_config


def watch_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note the dtypes of what leaves each model, policies and critics alike."""

    @functools.wraps(original)
    def prepare(self: Strategy, *args: Any) -> Any:
        result = original(self, *args)
        for entry in result if isinstance(result, list) else [result]:
            model = entry[0] if isinstance(entry, tuple) else entry
            if model is not None:
                watch(model)
        return result

    return prepare


def no_step_while_repeating(original: Callable[..., Any]) -> Callable[..., Any]:
    """End a batch that is run again, to see where it overflows, before the optimizer's step."""

    @functools.wraps(original)
    def optimizer_step(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        return None if getattr(self, _REPEATING, False) else original(self, *args, **kwargs)

    return optimizer_step


@contextmanager
def _repeating(strategy: Strategy) -> Iterator[None]:
    setattr(strategy, _REPEATING, True)
    try:
        yield
    finally:
        setattr(strategy, _REPEATING, False)


def account_for_updates(role: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Keep what became of each update; keep the batch for a diagnosis; trace the update that was asked for."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def training_step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
            engine = engine_of(getattr(self, role))
            scaler = scaler_of(engine)
            if scaler is None or getattr(self.strategy, _REPEATING, False):
                return original(self, *args, **kwargs)

            def again() -> None:
                with _repeating(self.strategy):
                    original(self, *args, **kwargs)

            replay.remember(engine, again, role=role, in_bf16=IN_BF16)
            results: list[Any] = []
            if not replay.trace_if_asked(
                engine, scaler, lambda: results.append(original(self, *args, **kwargs)), role=role
            ):
                results.append(original(self, *args, **kwargs))
            if (update := last_update(engine)) is not None:
                self.__dict__.setdefault(_UPDATES, []).append((update, describe(update, scaler.counts)))
            return results[0]

        return training_step

    return make


def publish_updates(role: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Metrics of the scaler beside OpenRLHF's own; its gradient norm is that of updates that were made, or absent."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def ppo_train(self: Trainer, *args: Any, **kwargs: Any) -> dict[str, Any]:
            setattr(self, _UPDATES, [])
            status: dict[str, Any] = original(self, *args, **kwargs)
            updates = getattr(self, _UPDATES)
            if not updates:
                return status
            status |= {f"{role}/{name}": value for name, value in combined(m for _, m in updates).items()}
            norms = [update.grad_norm for update, _ in updates if update.grad_norm is not None]
            status.pop(f"{role}_grad_norm", None)
            if norms:
                status |= {f"{role}_grad_norm": norms[-1], f"{role}/grad_norm": sum(norms) / len(norms)}
            return status

        return ppo_train

    return make


def describe_actor(actor: Any) -> dict[str, str]:
    """Rows for the precision report of one model actor (policy, reference, critic or reward)."""
    model = next(getattr(actor, name) for name in ("actor", "critic", "model") if hasattr(actor, name))
    engine = engine_of(model)
    return describe_engine(engine) | recorded_dtypes(engine)


def _patch(name: str, target: str, **kwargs: Any) -> Patch:
    return Patch(
        name=f"openrlhf-{name}",
        target=target,
        kind="wrap",
        distribution=releases.DISTRIBUTION,
        versions=releases.RELEASES,
        process="trainer rank",
        **kwargs,
    )


_STRATEGY = "openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy"

STRATEGY_PATCHES: tuple[Patch, ...] = (
    _patch(
        "deepspeed-settings",
        f"{_STRATEGY}.get_ds_train_config",
        make=with_our_loss_scaling,
        parameters=("self",),
        reason="OpenRLHF's fp16 block says only that it is enabled: no way to set the scale, its interval, hysteresis "
        "or floor; and gradients of micro-batches are added up in FP16",
        upstream="OpenRLHF utils/deepspeed/deepspeed_utils.py:52",
        remove_when="OpenRLHF takes loss-scaling settings",
    ),
    _patch(
        "observe-outputs",
        f"{_STRATEGY}.prepare",
        make=watch_outputs,
        parameters=("self",),
        reason="the precision report states dtypes seen on live tensors; reads them, changes nothing",
        upstream="none: our own proof",
        remove_when="never",
    ),
    _patch(
        "no-step-while-repeating",
        f"{_STRATEGY}.optimizer_step",
        make=no_step_while_repeating,
        parameters=("self",),
        reason="a run that stops after too many skipped updates runs its last batch again to say where it overflows",
        upstream="none: our own diagnosis",
        remove_when="never",
    ),
    _patch(
        "average-in-fp32",
        f"{_STRATEGY}.moving_average",
        make=average_in_fp32,
        parameters=("self", "model", "model_ema", "beta", "device"),
        reason="an FP16 average of FP16 weights loses most of what an update adds to it, and it moves on skipped "
        "updates too",
        upstream="OpenRLHF utils/deepspeed/deepspeed.py:503",
        remove_when="OpenRLHF keeps its average in FP32",
    ),
)


def _training(role: str, trainer: str) -> tuple[Patch, ...]:
    return (
        _patch(
            f"{role}-updates",
            f"{trainer}.training_step",
            make=account_for_updates(role),
            parameters=("self",),
            reason="nobody hears of DeepSpeed's skips; afterwards each is counted, and its batch kept for a diagnosis",
            upstream=f"OpenRLHF trainer/ray/ppo_{role}.py, training_step",
            remove_when="OpenRLHF reports skipped updates",
        ),
        _patch(
            f"{role}-metrics",
            f"{trainer}.ppo_train",
            make=publish_updates(role),
            parameters=("self",),
            reason="OpenRLHF reports neither the loss scale nor skips, and after a skip the norm of another update",
            upstream=f"OpenRLHF trainer/ray/ppo_{role}.py, ppo_train; utils/deepspeed/deepspeed.py:196",
            remove_when="OpenRLHF reports the loss scale and skipped updates",
        ),
    )


ACTOR_PATCHES = _training("actor", "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer")
CRITIC_PATCHES = _training("critic", "openrlhf.trainer.ray.ppo_critic:CriticPPOTrainer")
