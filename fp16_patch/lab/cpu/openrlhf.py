# SPDX-License-Identifier: Apache-2.0
"""Activation for OpenRLHF with DeepSpeed and vLLM, where ``FP16_PATCH_PLATFORM=cpu`` asks for it.

OpenRLHF loads no module on request, so whoever starts its processes calls ``activate`` in each: the driver, Ray's
workers, vLLM's own children. Nothing is imported on a patch's behalf; each is applied when its target is imported.
"""

from __future__ import annotations

import os
from types import ModuleType

from fp16_patch.lab.cpu import flash_attention, rounded_rollout
from fp16_patch.lab.cpu.plan import OPENRLHF_PATCHES, apply_when_imported
from fp16_patch.patching import when_imported

_active = False


def activate() -> None:
    """Have this process run without a GPU. Idempotent, and cheap: imports no framework.

    Errors (Fp16PatchError) come out of the import of what cannot be patched, and so end the process.
    """
    global _active
    if _active:
        return
    _active = True
    os.environ["DS_ACCELERATOR"] = "cpu"
    flash_attention.stand_in()
    when_imported("torch", _half_products)
    apply_when_imported(OPENRLHF_PATCHES)
    rounded_rollout.activate()


def _half_products(_torch: ModuleType) -> None:
    from fp16_patch.lab.cpu import matmul

    matmul.enable()
