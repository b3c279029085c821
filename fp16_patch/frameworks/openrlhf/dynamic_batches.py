# SPDX-License-Identifier: Apache-2.0
"""Tell DeepSpeed which micro-batch is the last of an update, for ``--train.dynamic_batch_enable``.

The number of micro-batches then differs from update to update, and OpenRLHF makes it the same on all ranks
(trainer/ppo_utils/replay_buffer.py:130). It configures one micro-batch an update, and calls ``step()`` after the last.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.frameworks.openrlhf.releases import RELEASE
from fp16_patch.frameworks.openrlhf.trainer import engine_of
from fp16_patch.patching import ProcessKind, wrap

Trainer = Any  # openrlhf.trainer.ray.ppo_actor.ActorPPOTrainer, or ppo_critic's
Experience = Any  # openrlhf.trainer.ppo_utils.experience.Experience

_LAST: dict[str, Any] = {
    "release": RELEASE,
    "reason": "with dynamic batches every micro-batch is the last of an update for DeepSpeed. On ZeRO-2 the gradient "
    "of each then replaces that of the one before, in every precision, and only the last one trains",
    "upstream": "OpenRLHF utils/deepspeed/deepspeed.py:451, deepspeed runtime/zero/stage_1_and_2.py:955",
    "remove_when": "OpenRLHF sets DeepSpeed's gradient accumulation boundary",
}


def mark_boundary(trainer: Trainer, model: Any, step: int) -> None:
    """Set the engine's accumulation boundary at the last micro-batch of an update, if batches are dynamic."""
    if trainer.args.train.dynamic_batch_enable:
        last = bool(trainer.replay_buffer.dynamic_optimizer_step[step])
        engine_of(model).set_gradient_accumulation_boundary(last)


@wrap(
    "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.training_step",
    name="openrlhf-actor-dynamic-batches",
    processes={ProcessKind.ACTOR_RANK},
    **_LAST,
)
def mark_actor_boundary(
    original: Any, self: Trainer, experience: Experience, kl_ctl: float, step: int, *args: Any, **kwargs: Any
) -> Any:
    """Set the actor's accumulation boundary before its pass."""
    mark_boundary(self, self.actor, step)
    return original(self, experience, kl_ctl, step, *args, **kwargs)


@wrap(
    "openrlhf.trainer.ray.ppo_critic:CriticPPOTrainer.training_step",
    name="openrlhf-critic-dynamic-batches",
    processes={ProcessKind.CRITIC_RANK},
    **_LAST,
)
def mark_critic_boundary(
    original: Any, self: Trainer, experience: Experience, step: int, *args: Any, **kwargs: Any
) -> Any:
    """Set the critic's accumulation boundary before its pass."""
    mark_boundary(self, self.critic, step)
    return original(self, experience, step, *args, **kwargs)
