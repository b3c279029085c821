# SPDX-License-Identifier: Apache-2.0
"""Which patches apply when which of verl's modules is imported, and what each kind of process must show."""

from __future__ import annotations

from functools import partial

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl import checkpoint, driver, loss_scaling, rollout, trainer, weight_transfer
from fp16_patch.patching import Patch, apply, when_imported
from fp16_patch.precision import ENVIRONMENT_VARIABLE, Precision

TRAINER_PATCHES = trainer.PATCHES + loss_scaling.PATCHES + checkpoint.PATCHES

PLAN: dict[str, tuple[Patch, ...]] = {
    "verl.trainer.ppo.v1.trainer_base": driver.PATCHES,
    "verl.workers.engine.fsdp.transformer_impl": TRAINER_PATCHES,
    "verl.workers.rollout.vllm_rollout.vllm_rollout": weight_transfer.SENDER_PATCHES,
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer": weight_transfer.RECEIVER_PATCHES,
    "verl.workers.rollout.vllm_rollout.vllm_async_server": rollout.SERVER_PATCHES,
    "verl.workers.rollout.vllm_rollout.utils": rollout.WORKER_PATCHES,
}
"""Module -> the patches applied, all or none, right after it is imported.

No process imports a module of verl for our sake: each gets exactly the patches of what it uses.
"""

ALL_PATCHES: tuple[Patch, ...] = tuple(patch for patches in PLAN.values() for patch in patches)

REQUIRED: dict[str, tuple[Patch, ...]] = {
    "task runner": driver.PATCHES,
    "trainer rank": TRAINER_PATCHES + weight_transfer.SENDER_PATCHES,
    "vLLM server": rollout.SERVER_PATCHES,
    "vLLM worker": rollout.WORKER_PATCHES,
}
"""Kind of process -> what its ledger must show as applied or native.

Not the receiver's patch: vLLM workers import that module at the first weight update, and a failure there ends the run.
"""


def activate() -> None:
    """Arm this process. Raises :class:`Fp16PatchError` if it was not started by the flag."""
    if Precision.from_environment() is None:
        raise Fp16PatchError(
            f"fp16_patch.frameworks.verl.worker was imported without {ENVIRONMENT_VARIABLE}",
            next_step="do not set VERL_USE_EXTERNAL_MODULES yourself; use +precision@_global_=fp16",
        )
    for module, patches in PLAN.items():
        when_imported(module, partial(_apply, patches))


def _apply(patches: tuple[Patch, ...], _module: object) -> None:
    apply(patches)
