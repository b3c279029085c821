# SPDX-License-Identifier: Apache-2.0
"""List the platform's patches. Reading the lists activates nothing and imports no framework."""

from __future__ import annotations

from collections.abc import Iterable

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
from fp16_patch.patching import Patch, declared_in

PATCHES: tuple[Patch, ...] = (
    *declared_in(torch_fsdp, autocast, value_head),
    *vllm.VERL_PATCHES,
    *declared_in(polling, sockets),
    *declared_in(receiver_failures),
)
"""For verl."""

OPENRLHF_PATCHES: tuple[Patch, ...] = (
    *torch_cuda.PATCHES,
    *declared_in(deepspeed, gloo, weight_update),
    *vllm.PATCHES,
)

MEGATRON_PATCHES: tuple[Patch, ...] = declared_in(megatron_core, megatron_adam, megatron_bridge, megatron_verl)
"""For verl with Megatron, in addition to verl's and ``torch_cuda.MEGATRON_PATCHES``."""


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
