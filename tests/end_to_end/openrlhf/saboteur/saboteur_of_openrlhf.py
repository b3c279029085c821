# SPDX-License-Identifier: Apache-2.0
"""Breaks or watches things in the processes of a run: the SABOTAGE of its environment, separated by commas."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from pathlib import Path

from fp16_patch import envs
from fp16_patch.patching import when_imported

PLAN = "fp16_patch.frameworks.openrlhf.plan"
ENGINE = "deepspeed.runtime.engine"
STRATEGY = "openrlhf.utils.deepspeed.deepspeed"
EXTENSION = "openrlhf.trainer.ray.vllm_worker_wrap"
SAMPLES = "openrlhf.trainer.ppo_utils.samples_generator"
ACTOR = "openrlhf.trainer.ray.ppo_actor"
MODEL = "openrlhf.models.actor"
PARTS = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Weight of the trainer -> the weight of vLLM that holds it, and its place there."""


def after_ours(callback):
    """A callback registered while others run comes after all of them."""
    return lambda module: when_imported(module.__name__, callback)


def lose_a_patch(_) -> None:
    """A patch that is gone again: the process says nothing, only its ledger does."""
    from fp16_patch.engines.deepspeed.step import track_updates
    from fp16_patch.patching import undo

    undo([track_updates])


def lose_the_setup(_) -> None:
    """The flag carried nowhere, as where Ray's hook is not called (`uv run`): the driver is patched, no worker is."""
    from fp16_patch import platforms
    from fp16_patch.engines.ray import runtime_env

    set_hook = runtime_env.set_runtime_env_hook
    runtime_env.set_runtime_env_hook = lambda *_: set_hook(f"{platforms.__name__}.activate", (envs.PLATFORM,))


def bring_checkpoints_back(_) -> None:
    """Those of an earlier run, to where this one looks for them; a recipe's folder is empty when it starts."""
    if not Path(os.environ["CHECKPOINTS"]).exists():
        shutil.copytree(os.environ["EARLIER"], os.environ["CHECKPOINTS"])


def fail_while_receiving(module) -> None:
    def update_weight(self, *args, **kwargs):
        raise RuntimeError("sabotaged weight update")

    module.WorkerWrap.update_weight = update_weight


def spoil_every_update(module) -> None:
    """A loss that is never finite."""
    backward = module.DeepspeedStrategy.backward

    @functools.wraps(backward)
    def spoilt(self, loss, *args, **kwargs):
        return backward(self, loss * float("nan"), *args, **kwargs)

    module.DeepspeedStrategy.backward = spoilt


def overflow_first(module) -> None:
    """An overflow in the first update."""
    backward, step, steps = module.DeepSpeedEngine.backward, module.DeepSpeedEngine.step, []

    @functools.wraps(backward)
    def spoilt(self, loss, *args, **kwargs):
        return backward(self, loss * (float("inf") if not steps else 1), *args, **kwargs)

    @functools.wraps(step)
    def counted(self, *args, **kwargs):
        if self.is_gradient_accumulation_boundary():
            steps.append(1)
        return step(self, *args, **kwargs)

    module.DeepSpeedEngine.backward, module.DeepSpeedEngine.step = spoilt, counted


def die_in_the_third(module) -> None:
    """kill -9 when the third update has begun."""
    step, steps = module.DeepSpeedEngine.step, []

    @functools.wraps(step)
    def counted(self, *args, **kwargs):
        if self.is_gradient_accumulation_boundary():
            steps.append(1)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    module.DeepSpeedEngine.step = counted


def nan_log_prob(module) -> None:
    """A rollout engine that returns NaN for the last token of one answer, and never again."""
    process, done = module.SamplesGenerator._process_response_into_experience, []

    @functools.wraps(process)
    def spoilt(self, response, **kwargs):
        if not done:
            done.append(1)
            response["rollout_log_probs"][-1] = float("nan")
        return process(self, response, **kwargs)

    module.SamplesGenerator._process_response_into_experience = spoilt


def nan_output(module) -> None:
    """A policy that returns NaN for one answer of the third update of 32 micro-batches, and never again."""
    forward, passes = module.Actor.forward, []

    @functools.wraps(forward)
    def spoilt(self, *args, **kwargs):
        import torch

        result = forward(self, *args, **kwargs)
        if not torch.is_grad_enabled():
            return result
        passes.append(1)
        log_probs, output = result
        return (log_probs * float("nan") if len(passes) == 2 * 32 + 5 else log_probs), output

    module.Actor.forward = spoilt


def witness_every_weight(module) -> None:
    """Compare, bit for bit, what the trainer sends with what vLLM holds once it has been loaded."""
    update_weight = module.WorkerWrap.update_weight
    record = Path(os.environ["WITNESS"])

    @functools.wraps(update_weight)
    def watched(self, name, dtype, shape, empty_cache=False):
        sent = []
        model = self.model_runner.model
        load_weights = model.load_weights

        def load(weights):
            pairs = list(weights)
            sent.extend((key, tensor.clone()) for key, tensor in pairs)
            return load_weights(pairs)

        model.load_weights = load
        try:
            result = update_weight(self, name, dtype, shape, empty_cache)
        finally:
            del model.load_weights
        held = dict(model.named_parameters())
        for key, tensor in sent:
            mine = part_of(held, key, tensor.shape[0])
            line = {"name": key, "dtype": str(mine.dtype), "elements": mine.numel()}
            line["different"] = int((mine.view(-1).to(tensor.dtype) != tensor.view(-1)).sum())
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return result

    module.WorkerWrap.update_weight = watched


def part_of(held, name, rows):
    """vLLM's weight of this name; it keeps some of the trainer's under each other in one."""
    owner, _, kind = name.rpartition(".")
    path, _, part = owner.rpartition(".")
    if part not in PARTS:
        return held[name].data[:rows]  # a vocabulary is padded
    whole, place = PARTS[part]
    tensor = held[f"{path}.{whole}.{kind}"].data
    if place == 0:
        return tensor[:rows]
    return tensor[-rows:] if place == 2 or whole == "gate_up_proj" else tensor[-2 * rows : -rows]


SABOTEURS = {
    "lose_a_patch": lambda: when_imported(ACTOR, after_ours(lose_a_patch)),
    "lose_the_setup": lambda: when_imported(PLAN, lose_the_setup),
    "bring_checkpoints_back": lambda: when_imported(PLAN, bring_checkpoints_back),
    "fail_while_receiving": lambda: when_imported(EXTENSION, after_ours(fail_while_receiving)),
    "spoil_every_update": lambda: when_imported(STRATEGY, after_ours(spoil_every_update)),
    "overflow_first": lambda: when_imported(ENGINE, overflow_first),
    "nan_log_prob": lambda: when_imported(SAMPLES, nan_log_prob),
    "nan_output": lambda: when_imported(MODEL, nan_output),
    "die_in_the_third": lambda: when_imported(ENGINE, die_in_the_third),
    "witness_every_weight": lambda: when_imported(EXTENSION, after_ours(witness_every_weight)),
}
for name in os.environ["SABOTAGE"].split(","):
    SABOTEURS[name]()
