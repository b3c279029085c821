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
    packing,
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
    *declared_in(deepspeed, gloo, packing, weight_update),
    *vllm.PATCHES,
)

MEGATRON_PATCHES: tuple[Patch, ...] = declared_in(megatron_core, megatron_adam, megatron_bridge, megatron_verl)
"""For verl with Megatron, in addition to verl's and ``torch_cuda.MEGATRON_PATCHES``."""


def listed_patches() -> dict[str, list[Patch]]:
    """Return the platform's parts of ``fp16-patch patches``: title and patches, each patch in one part only."""
    from fp16_patch.lab.cpu import rounded_rollout

    both = (*torch_cuda.PATCHES, *vllm.PATCHES)
    return {
        "The CPU platform on verl": _without(PATCHES, *both, *declared_in(receiver_failures)),
        "The CPU platform on verl with Megatron": _without((*torch_cuda.MEGATRON_PATCHES, *MEGATRON_PATCHES), *both),
        "The CPU platform on OpenRLHF": _without(OPENRLHF_PATCHES, *both),
        "The CPU platform on verl and OpenRLHF": list(both),
        "The CPU platform: an instrument for experiments": list(rounded_rollout.PATCHES),
    }


def _without(patches: Iterable[Patch], *others: Patch) -> list[Patch]:
    return [patch for patch in patches if patch not in others]
