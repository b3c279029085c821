# SPDX-License-Identifier: Apache-2.0
"""Say which patches apply when which module of verl is imported."""

from __future__ import annotations

from fp16_patch.engines.vllm import sampling
from fp16_patch.frameworks.verl import (
    controller,
    engine_counts,
    legacy_rollout_health,
    legacy_trainer,
    masked_answers,
    mismatch,
    nodes,
    receiver_failures,
    rollout,
    rollout_health,
    step_metrics,
    trainer,
    trainer_megatron,
)
from fp16_patch.frameworks.verl.trainer_fsdp import checkpoint, engine, fp32_modules
from fp16_patch.patching import registry

ALL_PATCHES = registry.declared_in(
    *(controller, nodes, mismatch, trainer),
    *(legacy_trainer, legacy_rollout_health),
    *(engine, checkpoint, fp32_modules),
    *(trainer_megatron, receiver_failures, rollout),
    *(rollout_health, masked_answers, engine_counts, sampling, step_metrics),
)

PLAN = registry.plan(ALL_PATCHES)
"""Module -> the patches applied, all or none, right after it is imported.

No process imports a module of verl only to be patched: each gets the patches of what it uses. verl itself imports
every engine that is installed.
"""
