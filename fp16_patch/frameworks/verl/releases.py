# SPDX-License-Identifier: Apache-2.0
"""The releases of verl that these patches were written for and tested with."""

from __future__ import annotations

from typing import Any

from fp16_patch.patching import ProcessKind, Release

RELEASE = Release("verl", "==0.9.1")
TRANSFER_QUEUE = Release("TransferQueue", ">=0.1.10,<0.2")
"""What verl's V1 trainer keeps its batches in."""

TASK_RUNNER: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.TASK_RUNNER}}
AGENT_LOOP: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.AGENT_LOOP}}
VLLM_WORKER: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.VLLM_WORKER}}
TRAINER_RANK: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.TRAINER_RANK}}
FSDP_RANK: dict[str, Any] = {**TRAINER_RANK, "engine": "fsdp"}
MEGATRON_RANK: dict[str, Any] = {**TRAINER_RANK, "engine": "megatron"}
"""What the patches of one kind of process have in common; those of actor, critic and reference ranks by engine."""
