# SPDX-License-Identifier: Apache-2.0
"""Patch verl's training step for every engine: metrics, LR schedule, and the abort after too many skips.

An engine that trains with a loss scale has it as ``engine.scaler``, and calls :func:`record_update` at each update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl import loss_check, mismatch, proof_gate
from fp16_patch.frameworks.verl.releases import FSDP_RANK, MEGATRON_RANK, TRAINER_RANK
from fp16_patch.frameworks.verl.replay import new_replay
from fp16_patch.frameworks.verl.state import Engine, EngineState, is_megatron, scaler_of
from fp16_patch.loss_scaling.update import COUNTS, Update, describe
from fp16_patch.patching import wrap
from fp16_patch.precision import Precision, long_name
from fp16_patch.report.observed_dtypes import record_dtype

_LR_SCHEDULE: dict[str, Any] = {
    "reason": "verl steps the LR schedule on skipped updates too",
    "upstream": "verl workers/engine_workers.py, TrainingWorker.train_batch",
    "remove_when": "verl holds the schedule when nothing was updated",
}


def check_built_dtype(built: Any) -> None:
    """Check that an engine that verl has built computes in the flag's train dtype.

    Args:
        built: The torch dtype that it computes in.

    Raises:
        Fp16PatchError: It computes in another dtype.
    """
    wanted = f"torch.{long_name(Precision.current().train_dtype)}"
    if str(built) != wanted:
        raise Fp16PatchError(
            f"verl built an engine that computes in {built}, not {wanted}",
            code="wrong-dtype-built",
            next_step="report this with the precision report and your command: the flag had no effect",
        )


def record_update(engine: Engine, update: Update) -> float | None:
    """Keep this update for its metrics and the LR schedule. Return its gradient norm, as verl's step does."""
    state = attached(engine, EngineState)
    state.last_update = update
    state.weights_changed |= not update.skipped
    return update.grad_norm


def _gradients(engine: Engine) -> Iterator[Any]:
    """Yield the gradients held. Megatron accumulates them in ``main_grad``."""
    # Megatron has one chunk for each virtual pipeline stage of this rank.
    for chunk in engine.module if is_megatron(engine) else [engine.module]:
        for parameter in chunk.parameters():
            gradient = getattr(parameter, "main_grad", None)
            if (gradient := parameter.grad if gradient is None else gradient) is not None:
                yield gradient


@wrap(
    "verl.workers.engine.base:BaseEngine.train_batch",
    name="loss-scale-metrics",
    **TRAINER_RANK,
    reason="verl reports neither the loss scale nor a skipped update, logs an infinite norm, and never stops; "
    "it backpropagates a loss that is not finite; in bypass mode it measures no mismatch",
    upstream="verl workers/engine/fsdp/transformer_impl.py:817-827",
    remove_when="verl logs the loss scale and skipped updates and stops by itself",
)
def train_batch(original: Any, self: Engine, data: Any, loss_function: Callable[..., Any]) -> Any:
    """Trace the update if requested, check its losses, log the metrics, and abort after too many skips."""
    proof_gate.refuse_unproven_training()
    scaler = scaler_of(self)
    replay = None if scaler is None else new_replay(self, scaler)
    run = partial(self.forward_backward_batch, data, loss_check.checked(self, loss_function))
    if replay is not None:
        replay.trace_if_due(Precision.current().trace_update, run)
    loss, log_probs = mismatch.observe_loss(self, data, loss_function)
    outputs = original(self, data, loss_check.checked(self, loss))
    # Without a scaler, verl has dropped non-finite gradients by now.
    if dtypes := [gradient.dtype for gradient in _gradients(self)]:
        record_dtype(self, "gradients", *dtypes)
    losses: Any = loss_check.losses_of(self)
    update: Any = attached(self, EngineState).last_update
    if self.is_mp_src_rank_with_outputs():
        metrics = outputs["metrics"]
        metrics |= mismatch.metrics(self, log_probs)
        if metrics["grad_norm"] is None:  # a skipped update has none
            metrics.pop("grad_norm")
        found = losses.metrics() if scaler is None else describe(update, scaler.counts)
        metrics |= {name: [value] for name, value in _count_by_step(self, data, found).items()}
    if replay is None:
        losses.stop_after_too_many()
    else:
        replay.stop_after_too_many(update, run)
    return outputs


def _count_by_step(engine: Engine, data: Any, found: dict[str, float]) -> dict[str, float]:
    """Return an update's metrics with the counts of its whole step if it is the last one, without counts if it is not.

    verl takes the mean over all updates and ranks that give a metric. Every rank gives the same counts.
    """
    from verl.utils import tensordict_utils as tu

    counts = attached(engine, EngineState).counts
    for name in COUNTS:
        counts[name] = counts.get(name, 0.0) + found.pop(name)
    if tu.get(data, key="update_lr_scheduler", default=True):  # verl marks the last update of a step
        found |= counts
        counts.clear()
    return found


@wrap(
    "verl.workers.engine.megatron.transformer_impl:MegatronEngine.lr_scheduler_step",
    name="megatron-lr-scheduler-step",
    **MEGATRON_RANK,
    **_LR_SCHEDULE,
)
@wrap(
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngine.lr_scheduler_step",
    name="fsdp-lr-scheduler-step",
    **FSDP_RANK,
    **_LR_SCHEDULE,
)
def step_lr_scheduler(original: Any, self: Engine) -> Any:
    """Step the LR scheduler only if weights have changed since it last did. Return the learning rate."""
    if scaler_of(self) is None:
        return original(self)
    state = attached(self, EngineState)
    changed, state.weights_changed = state.weights_changed, False
    return original(self) if changed else self.optimizer.param_groups[0]["lr"]
