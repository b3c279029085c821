# SPDX-License-Identifier: Apache-2.0
"""Activate the platform for OpenRLHF with DeepSpeed and vLLM: ``FP16_PATCH_PLATFORM=cpu``.

OpenRLHF loads no external modules. The caller must call ``fp16_patch.platforms.activate`` in each of its processes:
the driver, Ray's workers, vLLM's own children. Each patch is applied when its target's module is imported; no module is
imported for a patch.
"""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType

from fp16_patch.lab.cpu import import_stubs, rounded_rollout
from fp16_patch.lab.cpu.plan import OPENRLHF_PATCHES
from fp16_patch.patching import plan, register_import_hooks, when_imported


@cache
def activate() -> None:
    """Make this process run without a GPU. Idempotent, and cheap: it imports no framework.

    If a patch does not fit, the import of its target raises Fp16PatchError, which ends the process.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    import_stubs.install_flash_attention()
    when_imported("torch", _enable_matmul)
    register_import_hooks(plan(OPENRLHF_PATCHES))
    rounded_rollout.activate()


def _enable_matmul(_torch: ModuleType) -> None:
    from fp16_patch.lab.cpu import matmul

    matmul.enable()
