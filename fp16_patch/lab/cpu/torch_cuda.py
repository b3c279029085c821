# SPDX-License-Identifier: Apache-2.0
"""The functions of ``torch.cuda`` that OpenRLHF and Megatron call without asking whether there is a GPU.

Neither has a device interface: OpenRLHF's trainer says ``torch.cuda.current_device()`` in some 25 places. Without a GPU
each of these raises (``manual_seed`` does nothing), so nothing that works today can notice that here they answer.
``torch.cuda.is_available()`` keeps saying no, and everything that asks first goes its usual way. vLLM's CPU backend has
stand-ins of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.lab.cpu.device import CpuDeviceId
from fp16_patch.lab.cpu.streams import CpuStream
from fp16_patch.patching import Patch


def _the_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def current_device() -> CpuDeviceId:
        return CpuDeviceId("cpu")

    return current_device


def _nothing(original: Callable[..., Any]) -> Callable[..., Any]:
    def nothing(device: Any = None) -> None:
        """There is one device, it has no streams, and it is done when the call returns."""

    return nothing


def _a_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def stream(*_: Any, **__: Any) -> CpuStream:
        return CpuStream()

    return stream


def _random_state(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_rng_state(device: Any = "cuda") -> Any:
        import torch

        return torch.get_rng_state()

    return get_rng_state


def _seed(original: Callable[..., Any]) -> Callable[..., Any]:
    def manual_seed(seed: int) -> None:
        import torch

        torch.manual_seed(seed)

    return manual_seed


def _patch(function: str, fingerprint: str, make: Callable[..., Any], **more: Any) -> Patch:
    module, _, name = function.rpartition(":")
    return Patch(
        name=f"cpu-torch-cuda-{name.lower().replace('.__new__', '').replace('_', '-')}",
        target=f"torch.cuda{module}:{name}",
        kind="replace",
        distribution="torch",
        versions=">=2.13,<2.14",
        process="every process of OpenRLHF; of verl, those with Megatron",
        reason="Called whatever the machine has, and it raises without a GPU. Only calls that would end the process, "
        "or do nothing, get another answer.",
        upstream="OpenRLHF and Megatron have no device interface; not reported",
        remove_when="OpenRLHF asks deepspeed.accelerator for the device, and Megatron something of the kind",
        make=make,
        fingerprint=fingerprint,
        **more,
    )


PATCHES = (
    _patch("current_device", "c3055302ad3eb33f", _the_cpu, also_bound=("torch.cuda.random:current_device",)),
    _patch("set_device", "b16beb791c7e59d6", _nothing),
    _patch("synchronize", "489b9f7350c25be3", _nothing),
    _patch("current_stream", "a757284309661923", _a_stream),
)
"""For both."""

MEGATRON_PATCHES = (
    *PATCHES,
    _patch("default_stream", "1238700da3d1e9c7", _a_stream),
    _patch(".streams:Stream.__new__", "283a7f9a66dcbb3e", _a_stream),
    _patch(".streams:Event.__new__", "21a3bc76920bae06", _a_stream),
    _patch(".random:get_rng_state", "b632c25c25f11f56", _random_state, also_bound=("torch.cuda:get_rng_state",)),
    _patch(".random:manual_seed", "87b5c9a4e0832dc9", _seed, also_bound=("torch.cuda:manual_seed",)),
)
