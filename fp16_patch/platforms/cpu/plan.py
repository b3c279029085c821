# SPDX-License-Identifier: Apache-2.0
"""Every patch of the platform. Reading the list activates nothing and imports no framework."""

from __future__ import annotations

from fp16_patch.frameworks.verl import weight_transfer
from fp16_patch.patching import Patch
from fp16_patch.platforms.cpu import autocast, polling, sockets, torch_fsdp, value_head, vllm

PATCHES: tuple[Patch, ...] = (
    *torch_fsdp.PATCHES,
    *autocast.PATCHES,
    *value_head.PATCHES,
    *vllm.PATCHES,
    *polling.PATCHES,
    *sockets.PATCHES,
    *weight_transfer.PATCHES,
)
