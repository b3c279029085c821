# SPDX-License-Identifier: Apache-2.0
"""Breaks one thing in the processes of a run; named in VERL_USE_EXTERNAL_MODULES before our own module."""

from __future__ import annotations

import os
import signal
from types import ModuleType

from fp16_patch.patching import undo, when_imported

BASE = "verl.workers.engine.base"
ENGINE = "verl.workers.engine.fsdp.transformer_impl"
SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server"
LEGACY = "verl.trainer.ppo.ray_trainer"
EXTENSION = "verl.workers.rollout.vllm_rollout.utils"


def lose_a_patch(_: ModuleType) -> None:
    """A patch that is gone again: the process says nothing, only its ledger does."""
    from fp16_patch.frameworks.verl.trainer_fsdp.engine import build_scaler

    undo([build_scaler])


def change_the_source(module: ModuleType) -> None:
    """Another tool has replaced the function we would wrap, with other parameters."""

    def _update_weights(self, new, parameters):
        raise AssertionError("never called")

    module.vLLMColocateWorkerExtension._update_weights = _update_weights


def fail_while_receiving(module: ModuleType) -> None:
    """A vLLM worker that raises in the middle of a weight update."""

    def _update_weights(self, weights, peft_config, base_sync_done):
        raise RuntimeError("sabotaged weight update")

    module.vLLMColocateWorkerExtension._update_weights = _update_weights


def die_in_third_update(_: ModuleType) -> None:
    """An overflow in a trainer rank's first update, kill -9 when its third has begun."""
    from fp16_patch.engines.fsdp import step

    updates, clip_and_step = [], step.clip_and_step

    def counted(scaler, optimizer, *args, **kwargs):
        updates.append(1)
        if len(updates) == 1:
            next(iter(optimizer.param_groups[0]["params"])).grad.mul_(float("inf"))
        if len(updates) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return clip_and_step(scaler, optimizer, *args, **kwargs)

    step.clip_and_step = counted


def spoil_every_update(module: ModuleType) -> None:
    """A loss function whose loss is never finite."""
    train_batch = module.BaseEngine.train_batch

    def spoilt(self, data, loss_function):
        def never_finite(**given):
            loss, *rest = loss_function(**given)
            return loss * float("nan"), *rest

        return train_batch(self, data, never_finite)

    module.BaseEngine.train_batch = spoilt


def nan_log_prob(module: ModuleType) -> None:
    """A rollout engine that returns NaN for one token of one answer, and never again."""
    generate, done = module.vLLMHttpServer.generate, []

    async def generate_with_nan(self, *args, **kwargs):
        output = await generate(self, *args, **kwargs)
        if not done and len(output.log_probs or ()) > 1:
            done.append(1)
            output.log_probs[1] = float("nan")
        return output

    module.vLLMHttpServer.generate = generate_with_nan


def never_ask(_: ModuleType) -> None:
    """A trainer with a loop of its own, which asks no process for its report."""
    from fp16_patch.frameworks.verl.plan import ALL_PATCHES

    undo([patch for patch in ALL_PATCHES if patch.target.startswith(f"{LEGACY}:")])


def after_ours(callback):
    """A callback registered while others run comes after all of them."""
    return lambda module: when_imported(module.__name__, callback)


{
    "lose_a_patch": lambda: when_imported(ENGINE, after_ours(lose_a_patch)),
    "never_ask": lambda: when_imported(LEGACY, after_ours(never_ask)),
    "change_the_source": lambda: when_imported(EXTENSION, change_the_source),
    "die_in_third_update": lambda: when_imported(ENGINE, die_in_third_update),
    "spoil_every_update": lambda: when_imported(BASE, after_ours(spoil_every_update)),
    "nan_log_prob": lambda: when_imported(SERVER, after_ours(nan_log_prob)),
    "fail_while_receiving": lambda: when_imported(EXTENSION, after_ours(fail_while_receiving)),
}[os.environ["SABOTAGE"]]()
