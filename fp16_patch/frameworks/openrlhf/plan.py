# SPDX-License-Identifier: Apache-2.0
"""Which patches apply when which of OpenRLHF's modules is imported, and what each kind of process must show."""

from __future__ import annotations

from functools import partial

from fp16_patch import platforms
from fp16_patch.engines.deepspeed.plan import PLAN as DEEPSPEED
from fp16_patch.frameworks.openrlhf import controller, controller_async, mismatch, rollout, trainer
from fp16_patch.patching import Patch, apply, when_imported

PLAN: dict[str, tuple[Patch, ...]] = {
    "openrlhf.trainer.ray.vllm_engine": rollout.SERVER_PATCHES,
    "openrlhf.trainer.ray.vllm_worker_wrap": rollout.WORKER_PATCHES,
    "openrlhf.trainer.ppo_utils.samples_generator": rollout.SAMPLING_PATCHES,
    "openrlhf.trainer.ppo_utils.experience_maker": mismatch.EXPERIENCE_PATCHES,
    "openrlhf.trainer.ppo_trainer": controller.PATCHES + mismatch.TRAINER_PATCHES,
    "openrlhf.trainer.ppo_trainer_async": controller_async.PATCHES
    + controller.ASYNC_PATCHES
    + mismatch.ASYNC_TRAINER_PATCHES,
    "openrlhf.trainer.ray.ppo_actor": trainer.ACTOR_PATCHES,
    "openrlhf.trainer.ray.ppo_critic": trainer.CRITIC_PATCHES,
    "openrlhf.utils.deepspeed.deepspeed": trainer.STRATEGY_PATCHES,
    **DEEPSPEED,
}
"""Module -> the patches applied, all or none, right after it is imported; the same in every process."""

ALL_PATCHES: tuple[Patch, ...] = tuple(patch for patches in PLAN.values() for patch in patches)

_RANK = (*trainer.STRATEGY_PATCHES, *(patch for patches in DEEPSPEED.values() for patch in patches))

SHIPPED: dict[str, tuple[Patch, ...]] = {
    "controller": controller.PATCHES + mismatch.TRAINER_PATCHES,
    "coordinator": controller_async.PATCHES,
    "async controller": controller.ASYNC_PATCHES + mismatch.ASYNC_TRAINER_PATCHES,
}
"""Kind of process -> those of its patches that come with its class from the driver."""

REQUIRED: dict[str, tuple[Patch, ...]] = {
    "controller": (*SHIPPED["controller"], *mismatch.EXPERIENCE_PATCHES, *rollout.SAMPLING_PATCHES),
    "coordinator": SHIPPED["coordinator"],
    "async controller": (*SHIPPED["async controller"], *mismatch.EXPERIENCE_PATCHES),
    "sampler": rollout.SAMPLING_PATCHES,
    "actor rank": (*trainer.ACTOR_PATCHES, *_RANK),
    "reference rank": _RANK,
    "critic rank": (*trainer.CRITIC_PATCHES, *_RANK),
    "reward rank": _RANK,
    "vLLM server": rollout.SERVER_PATCHES,
    "vLLM worker": rollout.WORKER_PATCHES,
}
"""Kind of process -> what its ledger must show as applied or native."""


def arm() -> None:
    """Have each patch applied when its target's module is imported; the platform's first, where one is asked for."""
    platforms.activate()
    for module, patches in PLAN.items():
        when_imported(module, partial(_apply, patches))


def _apply(patches: tuple[Patch, ...], _module: object) -> None:
    apply(patches)
