# SPDX-License-Identifier: Apache-2.0
"""Activate what Megatron needs in addition to ``fp16_patch.lab.cpu.verl``, for verl's ``strategy=megatron``.

``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=fp16_patch.lab.cpu.verl,fp16_patch.lab.cpu.megatron``

This is a separate module because Megatron has no device interface: once Megatron is imported, functions of
``torch.cuda`` are replaced in the process. Without verl, import this module and call
``cuda_to_cpu.enable_in_thread()``.
"""

from __future__ import annotations

from fp16_patch.lab.cpu import import_stubs, matmul, megatron_import, torch_cuda
from fp16_patch.lab.cpu.plan import MEGATRON_PATCHES
from fp16_patch.patching import apply, plan, register_import_hooks, when_imported


def activate() -> None:
    """Register the import hooks that apply the patches; those of torch are applied when Megatron is imported."""
    megatron_import.allow()
    matmul.enable()
    import_stubs.install_transformer_engine()
    when_imported("megatron.core", lambda _module: apply(torch_cuda.MEGATRON_PATCHES))
    register_import_hooks(plan(MEGATRON_PATCHES))


activate()
