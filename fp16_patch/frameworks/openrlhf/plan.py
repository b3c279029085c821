# SPDX-License-Identifier: Apache-2.0
"""Say which patches apply when which module of OpenRLHF is imported, and what each kind of process must show."""

from __future__ import annotations

from fp16_patch import platforms
from fp16_patch.engines.deepspeed.plan import PATCHES as DEEPSPEED
from fp16_patch.frameworks.openrlhf import controller, controller_async, ema, mismatch, reports, rollout, trainer
from fp16_patch.patching import ProcessKind, declared_in, plan, registry, required

ALL_PATCHES = declared_in(controller_async, controller, mismatch, rollout, trainer, ema) + DEEPSPEED

PLAN = plan(ALL_PATCHES)
"""Module -> the patches applied, all or none, right after it is imported; the same in every process."""

_KINDS = (
    ProcessKind.CONTROLLER,
    ProcessKind.COORDINATOR,
    ProcessKind.ASYNC_CONTROLLER,
    ProcessKind.SAMPLER,
    ProcessKind.ACTOR_RANK,
    ProcessKind.REFERENCE_RANK,
    ProcessKind.CRITIC_RANK,
    ProcessKind.REWARD_RANK,
    ProcessKind.VLLM_SERVER,
    ProcessKind.VLLM_WORKER,
)

REQUIRED = required(ALL_PATCHES, _KINDS, {"deepspeed"})
"""Kind of process -> what its ledger must show as applied or native."""

SHIPPED = required((patch for patch in ALL_PATCHES if patch.shipped), _KINDS[:3])
"""Kind of process -> those of its patches that come with its class from the driver."""

reports.REQUIRED.update(REQUIRED)
reports.SHIPPED.update(SHIPPED)


def register_import_hooks() -> None:
    """Apply each patch when its target's module is imported. A platform's patches come first, if one is set."""
    platforms.activate()
    registry.register_import_hooks(PLAN)
