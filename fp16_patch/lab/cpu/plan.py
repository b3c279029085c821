# SPDX-License-Identifier: Apache-2.0
"""Every patch of the platform. Reading the lists activates nothing and imports no framework."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import ModuleType

from fp16_patch.frameworks.verl import receiver_failures
from fp16_patch.lab.cpu import (
    autocast,
    deepspeed,
    gloo,
    megatron_adam,
    megatron_bridge,
    megatron_core,
    megatron_verl,
    polling,
    sockets,
    torch_cuda,
    torch_fsdp,
    value_head,
    vllm,
    weight_update,
)
from fp16_patch.patching import Patch, apply, when_imported

PATCHES: tuple[Patch, ...] = (
    *torch_fsdp.PATCHES,
    *autocast.PATCHES,
    *value_head.PATCHES,
    *vllm.PATCHES,
    *vllm.VERL_PATCHES,
    *polling.PATCHES,
    *sockets.PATCHES,
    *receiver_failures.PATCHES,
)
"""For verl."""

OPENRLHF_PATCHES: tuple[Patch, ...] = (
    *torch_cuda.PATCHES,
    *deepspeed.PATCHES,
    *gloo.PATCHES,
    *weight_update.PATCHES,
    *vllm.PATCHES,
)

MEGATRON_PATCHES: tuple[Patch, ...] = (
    *megatron_core.PATCHES,
    *megatron_adam.PATCHES,
    *megatron_bridge.PATCHES,
    *megatron_verl.PATCHES,
)
"""For verl with Megatron, beside those for verl and ``torch_cuda.MEGATRON_PATCHES``."""


def apply_when_imported(patches: Iterable[Patch]) -> None:
    """Apply each patch right after its target's module is imported; import nothing for it."""
    for patch in patches:
        when_imported(patch.target.partition(":")[0], partial(_apply, (patch,)))


def _apply(patches: tuple[Patch, ...], _module: ModuleType) -> None:
    apply(patches)


def listed_patches() -> dict[str, list[Patch]]:
    """Return the platform's parts of ``fp16-patch patches``: title and patches, each patch in one part only."""
    from fp16_patch.frameworks.verl.plan import ALL_PATCHES
    from fp16_patch.lab.cpu import rounded_rollout

    def without(patches: Iterable[Patch], *others: Iterable[Patch]) -> list[Patch]:
        listed = {patch.name for other in others for patch in other}
        return [patch for patch in patches if patch.name not in listed]

    verl, megatron = without(PATCHES, ALL_PATCHES), [*torch_cuda.MEGATRON_PATCHES, *MEGATRON_PATCHES]
    on_verl = [*verl, *megatron]
    both = without(OPENRLHF_PATCHES, without(OPENRLHF_PATCHES, on_verl))
    return {
        "The CPU platform on verl, where it is asked for": without(verl, both),
        "The CPU platform on verl with Megatron": without(megatron, both),
        "The CPU platform on OpenRLHF, where it is asked for": without(OPENRLHF_PATCHES, both),
        "The CPU platform on either": both,
        "The CPU platform, an instrument for experiments": list(rounded_rollout.PATCHES),
    }
