# SPDX-License-Identifier: Apache-2.0
"""Name the releases of OpenRLHF that the patches support, and what their declarations have in common."""

from __future__ import annotations

from typing import Any

from fp16_patch.patching import ProcessKind, Release

RELEASE = Release("openrlhf", "==0.11.2")

TRAINER = "openrlhf.trainer.ppo_trainer:PPOTrainer"
ASYNC_TRAINER = "openrlhf.trainer.ppo_trainer_async:TrainingActor"
CONTROLLER: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.CONTROLLER}, "shipped": True}
ASYNC_CONTROLLER: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.ASYNC_CONTROLLER}, "shipped": True}
TRAINER_RANK: dict[str, Any] = {"release": RELEASE, "processes": {ProcessKind.TRAINER_RANK}}
"""The controller's two classes, one for each trainer, and what the patches of a kind of process have in common."""
