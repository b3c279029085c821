# SPDX-License-Identifier: Apache-2.0
"""Which patches apply when which of verl's modules is imported, and what each kind of process must show."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl import controller, receiver_failures, rollout, trainer
from fp16_patch.frameworks.verl.trainer_fsdp import checkpoint as fsdp_checkpoint
from fp16_patch.frameworks.verl.trainer_fsdp import engine as fsdp
from fp16_patch.frameworks.verl.trainer_fsdp import loss_scaling as fsdp_scaling
from fp16_patch.frameworks.verl.trainer_megatron import checkpoint as megatron_checkpoint
from fp16_patch.frameworks.verl.trainer_megatron import engine as megatron
from fp16_patch.patching import Patch, apply, when_imported
from fp16_patch.precision import Precision

FSDP_PATCHES = fsdp.PATCHES + fsdp_scaling.PATCHES + fsdp_checkpoint.PATCHES
MEGATRON_PATCHES = megatron.PATCHES + megatron_checkpoint.PATCHES

PLAN: dict[str, tuple[Patch, ...]] = {
    "verl.trainer.ppo.v1.trainer_base": controller.PATCHES,
    "verl.workers.engine.base": trainer.PATCHES,
    "verl.workers.engine.fsdp.transformer_impl": FSDP_PATCHES,
    "verl.workers.engine.megatron.transformer_impl": MEGATRON_PATCHES,
    "verl.workers.rollout.vllm_rollout.vllm_rollout": receiver_failures.SENDER_PATCHES,
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer": receiver_failures.RECEIVER_PATCHES,
    "verl.workers.rollout.vllm_rollout.vllm_async_server": rollout.SERVER_PATCHES,
    "verl.workers.rollout.vllm_rollout.utils": rollout.WORKER_PATCHES,
}
"""Module -> the patches applied, all or none, right after it is imported.

No process imports a module of verl for our sake: each gets exactly the patches of what it uses. verl itself imports
every engine that is installed.
"""

ALL_PATCHES: tuple[Patch, ...] = tuple(patch for patches in PLAN.values() for patch in patches)

_ENGINES = {"fsdp": FSDP_PATCHES, "fsdp2": FSDP_PATCHES, "megatron": MEGATRON_PATCHES}


def required(strategies: Iterable[str]) -> dict[str, tuple[Patch, ...]]:
    """Kind of process -> what its ledger must show as applied or native, in a run with these trainer strategies.

    Not the receiver's patch: vLLM workers import that module at the first weight update, and a failure there ends
    the run.
    """
    engines = dict.fromkeys(patch for strategy in strategies for patch in _ENGINES[strategy])
    return {
        "task runner": controller.PATCHES,
        "trainer rank": (*trainer.PATCHES, *engines, *receiver_failures.SENDER_PATCHES),
        "vLLM server": rollout.SERVER_PATCHES,
        "vLLM worker": rollout.WORKER_PATCHES,
    }


def activate() -> None:
    """Arm this process. Raises :class:`Fp16PatchError` if it was not started by the flag."""
    if Precision.from_environment() is None:
        raise Fp16PatchError(
            f"fp16_patch.frameworks.verl.worker was imported without {envs.PRECISION}",
            code="flag-not-propagated",
            next_step="do not set VERL_USE_EXTERNAL_MODULES yourself; use +precision@_global_=fp16",
        )
    for module, patches in PLAN.items():
        when_imported(module, partial(_apply, patches))


def _apply(patches: tuple[Patch, ...], _module: object) -> None:
    apply(patches)
