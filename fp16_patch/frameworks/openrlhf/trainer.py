# SPDX-License-Identifier: Apache-2.0
"""Patch OpenRLHF's DeepSpeed strategy and the training steps of its actor and critic.

``engines/deepspeed`` has the scaler, the repaired step and the checkpoints. The patches here pass it the settings, and
add the result of each update to OpenRLHF's metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.deepspeed import replay
from fp16_patch.engines.deepspeed.config import with_fp16
from fp16_patch.engines.deepspeed.precision import describe_engine
from fp16_patch.engines.deepspeed.step import get_loss_scaler, last_update, losses_of
from fp16_patch.frameworks.openrlhf import loss_check
from fp16_patch.frameworks.openrlhf.releases import RELEASE, TRAINER_RANK
from fp16_patch.loss_scaling.update import Update, combined, describe
from fp16_patch.patching import ProcessKind, hook, wrap
from fp16_patch.precision import Precision
from fp16_patch.report.observed_dtypes import record_dtype, recorded_dtypes

Strategy = Any  # openrlhf.utils.deepspeed.DeepspeedStrategy
Trainer = Any  # openrlhf.trainer.ray.ppo_actor.ActorPPOTrainer, or ppo_critic's

IN_BF16 = "train in BF16: --ds.param_dtype bf16"

_ACTOR = "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer"
_CRITIC = "openrlhf.trainer.ray.ppo_critic:CriticPPOTrainer"
_STRATEGY = "openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy"
_UPDATES: dict[str, Any] = {
    "reason": "DeepSpeed skips updates silently; counts them, and keeps the batch for a diagnosis",
    "remove_when": "OpenRLHF reports skipped updates",
}
_METRICS: dict[str, Any] = {
    "reason": "OpenRLHF reports neither the loss scale nor skips, and after a skip the norm of another update",
    "remove_when": "OpenRLHF reports the loss scale and skipped updates",
}
_PPO_TRAIN = "ppo_train; utils/deepspeed/deepspeed.py:196"


def _rank(role: str, place: str) -> dict[str, Any]:
    """Return what the patches of the actor's or the critic's trainer have in common; ``place`` is in its file."""
    upstream = f"OpenRLHF trainer/ray/ppo_{role}.py, {place}"
    return {"release": RELEASE, "processes": {ProcessKind(f"{role} rank")}, "upstream": upstream}


@dataclass
class _Updates:
    """Hold each update of a trainer since ppo_train began, with its metrics."""

    made: list[tuple[Update, dict[str, float]]] = field(default_factory=list)
    unscaled: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each update in BF16."""


@dataclass
class _Replay:
    """Hold whether a strategy runs a batch again to diagnose it. The optimizer must not step then."""

    running: bool = False


def engine_of(model: Any) -> Any:
    """Return the engine of ``model``: OpenRLHF's Actor holds one, critic and reward are engines themselves."""
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "backward") else model


def describe_actor(actor: Any) -> dict[str, str]:
    """Return rows for the precision report of one model actor (policy, reference, critic or reward)."""
    model = next(getattr(actor, name) for name in ("actor", "critic", "model") if hasattr(actor, name))
    engine = engine_of(model)
    return describe_engine(engine) | recorded_dtypes(engine)


@hook(f"{_CRITIC}.training_step", name="openrlhf-critic-updates", **_UPDATES, **_rank("critic", "training_step"))
@hook(f"{_ACTOR}.training_step", name="openrlhf-actor-updates", **_UPDATES, **_rank("actor", "training_step"))
def record_update(original: Any, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Record each update, keep its batch for a diagnosis, and trace the update that the settings name."""
    role = _role_of(self)
    engine = engine_of(getattr(self, role))
    scaler = get_loss_scaler(engine)
    batch = attached(self.strategy, loss_check.Batch)
    batch.experience, batch.engine, batch.role = args[0] if args else kwargs["experience"], engine, role
    step = partial(original, self, *args, **kwargs)
    if scaler is None:
        return _record_unscaled(self, engine, step)
    results: list[Any] = []

    def run() -> None:
        results.append(step())

    def run_again() -> None:
        replaying = attached(self.strategy, _Replay)
        replaying.running = True
        try:
            step()
        finally:
            replaying.running = False

    replay.remember(engine, run_again, role=role, in_bf16=IN_BF16)
    before = scaler.counts.updates
    if not replay.trace_if_asked(engine, scaler, run, role=role):
        run()
    update = last_update(engine)
    if update is not None and scaler.counts.updates > before:  # with dynamic batches step() is not always called
        attached(self, _Updates).made.append((update, describe(update, scaler.counts)))
    return results[0]


def _record_unscaled(trainer: Trainer, engine: Any, step: Callable[[], Any]) -> Any:
    """Record an update in BF16, of which only the losses are counted."""
    losses: Any = losses_of(engine)
    before = losses.counts.updates
    result = step()
    if losses.counts.updates > before:
        attached(trainer, _Updates).unscaled.append(losses.metrics())
    return result


@wrap(f"{_CRITIC}.ppo_train", name="openrlhf-critic-metrics", **_METRICS, **_rank("critic", _PPO_TRAIN))
@wrap(f"{_ACTOR}.ppo_train", name="openrlhf-actor-metrics", **_METRICS, **_rank("actor", _PPO_TRAIN))
def log_updates(original: Any, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Add the metrics of losses and scaler, and the gradient norms of the updates that were not skipped."""
    updates = attached(self, _Updates)
    updates.made, updates.unscaled = [], []
    status: dict[str, Any] = original(self, *args, **kwargs)
    role = _role_of(self)
    found = combined([*(metrics for _, metrics in updates.made), *updates.unscaled])
    status |= {f"{role}/{name}": value for name, value in found.items()}
    if updates.made:
        status.pop(f"{role}_grad_norm", None)
        if norms := [update.grad_norm for update, _ in updates.made if update.grad_norm is not None]:
            status |= {f"{role}_grad_norm": norms[-1], f"{role}/grad_norm": fmean(norms)}
    elif updates.unscaled and updates.unscaled[-1]["loss_not_finite"]:
        status.pop(f"{role}_grad_norm", None)  # OpenRLHF reports 0 where there is none
    return status


def _role_of(trainer: Trainer) -> str:
    return "actor" if hasattr(trainer, "actor") else "critic"


@wrap(
    f"{_STRATEGY}.get_ds_train_config",
    name="openrlhf-deepspeed-settings",
    reason="OpenRLHF only enables the fp16 block: the scale, its interval, hysteresis and floor cannot be set, and "
    "gradients of micro-batches are accumulated in FP16",
    upstream="OpenRLHF utils/deepspeed/deepspeed_utils.py:52",
    remove_when="OpenRLHF takes loss-scaling settings",
    **TRAINER_RANK,
)
def set_loss_scaling(original: Any, self: Strategy, *args: Any, **kwargs: Any) -> Any:
    """Put our settings in DeepSpeed's configuration, which it prints and saves."""
    config: dict[str, Any] = original(self, *args, **kwargs)
    return with_fp16(config, Precision.current().loss_scaling) if config["fp16"]["enabled"] else config


@hook(
    f"{_STRATEGY}.prepare",
    name="openrlhf-observe-outputs",
    reason="the precision report states the dtypes of live tensors; reads them, changes nothing",
    **TRAINER_RANK,
)
def observe_outputs(original: Any, self: Strategy, *args: Any) -> Any:
    """Record the dtypes of logits, log-probs, values and rewards at every forward of each model.

    Keep what a model returns in training, for the check of its loss.
    """
    result = original(self, *args)
    for entry in result if isinstance(result, list) else [result]:
        model = entry[0] if isinstance(entry, tuple) else entry
        if model is not None:
            engine = engine_of(model)
            engine.module.register_forward_hook(partial(_record_output, engine, "values"))
            if engine is not model:
                model.register_forward_hook(partial(_record_output, engine, "log_probs"))
            loss_check.keep_outputs(self, model, "values" if engine is model else "log_probs")
    return result


def _record_output(engine: Any, name: str, _module: Any, _inputs: Any, output: Any) -> None:
    first = output[0] if isinstance(output, tuple) else output
    if hasattr(first, "dtype"):
        record_dtype(engine, name, first.dtype)
    elif (logits := getattr(first, "logits", None)) is not None and "logits" not in recorded_dtypes(engine):
        record_dtype(engine, "logits", logits.dtype)  # only the first: OpenRLHF replaces them by FP32 copies later


@wrap(
    f"{_STRATEGY}.optimizer_step",
    name="openrlhf-no-step-while-repeating",
    reason="before a run stops after too many skipped updates, it runs the last batch again to find the overflow",
    upstream="none: our own diagnosis",
    remove_when="never",
    **TRAINER_RANK,
)
def skip_step_in_replay(original: Any, self: Strategy, *args: Any, **kwargs: Any) -> Any:
    """Skip the optimizer's step while a batch is run again."""
    return None if attached(self, _Replay).running else original(self, *args, **kwargs)
