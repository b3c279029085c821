# SPDX-License-Identifier: Apache-2.0
"""Say which patches apply when which module of OpenRLHF is imported. Fill ``reports.REQUIRED``."""

from __future__ import annotations

from fp16_patch import platforms
from fp16_patch.engines.deepspeed.plan import PATCHES as DEEPSPEED
from fp16_patch.engines.vllm import sampling
from fp16_patch.frameworks.openrlhf import (
    controller,
    dynamic_batches,
    ema,
    loss_check,
    masked_answers,
    mismatch,
    nodes,
    reports,
    rollout,
    rollout_health,
    trainer,
)
from fp16_patch.patching import ProcessKind, declared_in, plan, registry, required

ALL_PATCHES = (
    *declared_in(
        controller, nodes, mismatch, rollout, rollout_health, masked_answers, trainer, loss_check, ema, sampling
    ),
    *declared_in(dynamic_batches),  # after trainer, which asks for the boundary before it traces
    *DEEPSPEED,
)

PLAN = plan(ALL_PATCHES)
"""Module -> the patches applied, all or none, right after it is imported; the same in every process."""

reports.REQUIRED |= required(ALL_PATCHES, ProcessKind, {"deepspeed"})


def register_import_hooks() -> None:
    """Apply each patch when its target's module is imported. A platform's patches come first, if one is set."""
    platforms.activate()
    registry.register_import_hooks(PLAN)
