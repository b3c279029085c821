# SPDX-License-Identifier: Apache-2.0
"""Activation, by verl's own mechanism: ``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=fp16_patch.lab.cpu.verl``.

verl imports the modules named there in every process that imports verl: the driver, Ray actors, and vLLM's worker
processes, which import verl's worker extension. What goes wrong here therefore ends the process with its error.
Each patch is applied when its target's module is imported, so nothing is imported on a patch's behalf.
"""

from __future__ import annotations

import os

from verl.plugin.platform import PlatformRegistry

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu import matmul, rounded_rollout, without_megatron
from fp16_patch.lab.cpu.distribution import answer_for_vllm
from fp16_patch.lab.cpu.plan import PATCHES, apply_when_imported
from fp16_patch.lab.cpu.platform import PlatformCPU


def activate() -> None:
    """Register the platform, and have each patch applied when its target is imported. Raises Fp16PatchError."""
    asked_for = os.environ.get("VERL_PLATFORM", "")
    if asked_for.strip().lower() != "cpu":
        raise Fp16PatchError(
            f"fp16_patch.lab.cpu.verl is imported with VERL_PLATFORM={asked_for!r}",
            code="platform-mismatch",
            allowed="VERL_PLATFORM=cpu",
            next_step="set VERL_PLATFORM=cpu as well, or, on a machine with accelerators, take the module out of "
            "VERL_USE_EXTERNAL_MODULES",
        )
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")  # verl registers its engines for accelerators only
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    answer_for_vllm()
    matmul.enable()
    without_megatron.hide()
    apply_when_imported(PATCHES)
    rounded_rollout.activate()


activate()
