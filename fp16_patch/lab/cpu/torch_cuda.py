# SPDX-License-Identifier: Apache-2.0
"""Replace the functions of ``torch.cuda`` that OpenRLHF and Megatron call without checking for a GPU.

Neither has a device interface: OpenRLHF's trainer calls ``torch.cuda.current_device()`` in about 25 places. Without a
GPU each of these functions raises (``manual_seed`` does nothing), so no working code depends on the original.
``torch.cuda.is_available()`` still returns False, and code that checks first is not affected. vLLM's CPU backend
replaces functions in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.lab.cpu.device import CpuDeviceId
from fp16_patch.lab.cpu.releases import TORCH
from fp16_patch.lab.cpu.streams import CpuStream
from fp16_patch.patching import Patch, ProcessKind, replace


def _current_device() -> CpuDeviceId:
    return CpuDeviceId("cpu")


def _no_op(device: Any = None) -> None: ...


def _cpu_stream(*_: Any, **__: Any) -> CpuStream:
    return CpuStream()


def _get_rng_state(device: Any = "cuda") -> Any:
    import torch

    return torch.get_rng_state()


def _manual_seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _replace(function: str, fingerprint: str, handler: Callable[..., Any], *also_bound: str) -> Patch:
    module, _, name = function.rpartition(":")
    return replace(
        f"torch.cuda{module}:{name}",
        name=f"cpu-torch-cuda-{name.lower().replace('.__new__', '').replace('_', '-')}",
        also_bound=also_bound,
        release=TORCH,
        processes={ProcessKind.ANY},
        reason="OpenRLHF and Megatron call it whatever the machine has, and it raises without a GPU. Only calls that "
        "would end the process, or do nothing, get another answer.",
        upstream="OpenRLHF and Megatron have no device interface; not reported",
        remove_when="OpenRLHF asks deepspeed.accelerator for the device, and Megatron something of the kind",
        fingerprint=fingerprint,
    )(handler)


PATCHES = (
    _replace("current_device", "c3055302ad3eb33f", _current_device, "torch.cuda.random:current_device"),
    _replace("set_device", "b16beb791c7e59d6", _no_op),
    _replace("synchronize", "489b9f7350c25be3", _no_op),
    _replace("current_stream", "a757284309661923", _cpu_stream),
)
"""For OpenRLHF and Megatron."""

MEGATRON_PATCHES = (
    *PATCHES,
    _replace("default_stream", "1238700da3d1e9c7", _cpu_stream),
    _replace(".streams:Stream.__new__", "283a7f9a66dcbb3e", _cpu_stream),
    _replace(".streams:Event.__new__", "21a3bc76920bae06", _cpu_stream),
    _replace(".random:get_rng_state", "b632c25c25f11f56", _get_rng_state, "torch.cuda:get_rng_state"),
    _replace(".random:manual_seed", "87b5c9a4e0832dc9", _manual_seed, "torch.cuda:manual_seed"),
)
