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

from fp16_patch.lab.cpu.releases import TORCH
from fp16_patch.patching import Patch, ProcessKind, replace


class CpuDeviceId(str):
    """Act as a device id: ``tensor.to(id)`` means "cpu", and ``f"cpu:{id}"`` is "cpu:0".

    An int does not work: ``tensor.to(0)`` means the first accelerator.
    """

    def __format__(self, spec: str) -> str:
        return format(0, spec)


class CpuStream:
    """Stand in for ``torch.cuda.Stream`` and ``torch.cuda.Event``; all work on it is always done."""

    def _no_op(self, *_: object) -> None: ...

    wait = wait_event = wait_stream = synchronize = record = _no_op

    def record_event(self, event: CpuStream | None = None) -> CpuStream:
        """Return ``event``, or this stream, as the recorded event."""
        return event or self

    def query(self) -> bool:
        """Return True: all work is done."""
        return True


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
        reason="OpenRLHF and Megatron call it on every machine, and without a GPU it raises or does nothing. No other "
        "call is changed.",
        upstream="OpenRLHF and Megatron have no device interface; not reported",
        remove_when="OpenRLHF uses deepspeed.accelerator, and Megatron has a device interface",
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
