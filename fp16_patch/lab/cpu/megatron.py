# SPDX-License-Identifier: Apache-2.0
"""Activation of what Megatron needs beyond ``fp16_patch.lab.cpu.verl``, for verl's ``strategy=megatron``:

``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=fp16_patch.lab.cpu.verl,fp16_patch.lab.cpu.megatron``

Apart, because Megatron has no device interface: its ``torch.cuda`` gets answers in this process, once Megatron is
imported. Without verl, importing this module and ``cuda_means_cpu.for_this_thread()`` are enough.
"""

from __future__ import annotations

from fp16_patch.lab.cpu import matmul, torch_cuda, transformer_engine, without_megatron
from fp16_patch.lab.cpu.plan import MEGATRON_PATCHES, apply_when_imported
from fp16_patch.patching import apply, when_imported


def activate() -> None:
    """Have each patch applied when its target is imported, those of torch with Megatron. Raises Fp16PatchError."""
    without_megatron.show()
    matmul.enable()
    transformer_engine.stand_in()
    when_imported("megatron.core", lambda _module: apply(torch_cuda.MEGATRON_PATCHES))
    apply_when_imported(MEGATRON_PATCHES)


activate()
