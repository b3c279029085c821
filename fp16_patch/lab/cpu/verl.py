# SPDX-License-Identifier: Apache-2.0
"""Activate the platform for verl: ``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=fp16_patch.lab.cpu.verl``.

verl imports the modules in that variable in every process that imports verl: the driver, Ray actors, and vLLM's worker
processes, which import verl's worker extension. An error here therefore ends the process. Each patch is applied when
its target's module is imported; no module is imported for a patch.
"""

from __future__ import annotations

import os

from verl.plugin.platform import PlatformRegistry

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu import matmul, megatron_import, rounded_rollout
from fp16_patch.lab.cpu.distribution import alias_vllm_distribution
from fp16_patch.lab.cpu.plan import PATCHES
from fp16_patch.lab.cpu.platform import PlatformCPU
from fp16_patch.patching import plan, register_import_hooks


def activate() -> None:
    """Register the platform, and the import hooks that apply the patches.

    Raises:
        Fp16PatchError: If ``VERL_PLATFORM`` is not ``cpu``.
    """
    platform = os.environ.get("VERL_PLATFORM", "")
    if platform.strip().lower() != "cpu":
        raise Fp16PatchError(
            f"fp16_patch.lab.cpu.verl is imported with VERL_PLATFORM={platform!r}",
            code="platform-mismatch",
            allowed="VERL_PLATFORM=cpu",
            next_step="set VERL_PLATFORM=cpu as well, or, on a machine with accelerators, take the module out of "
            "VERL_USE_EXTERNAL_MODULES",
        )
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")  # verl registers its engines for accelerators only
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    alias_vllm_distribution()
    matmul.enable()
    megatron_import.block()
    register_import_hooks(plan(PATCHES))
    rounded_rollout.activate()


activate()
