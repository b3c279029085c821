# SPDX-License-Identifier: Apache-2.0
"""The four functions of ``torch.cuda`` that OpenRLHF calls without asking whether there is a GPU.

It has no device interface: its trainer says ``torch.cuda.current_device()`` in some 25 places. Without a GPU each of
the four raises, so nothing that works today can notice that here they answer. ``torch.cuda.is_available()`` keeps
saying no, and everything that asks first goes its usual way. vLLM's CPU backend has stand-ins of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch
from fp16_patch.platforms.cpu.device import CpuDeviceId


def _the_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def current_device() -> CpuDeviceId:
        return CpuDeviceId("cpu")

    return current_device


def _nothing(original: Callable[..., Any]) -> Callable[..., Any]:
    def nothing(device: Any = None) -> None:
        """There is one device, it has no streams, and it is done when the call returns."""

    return nothing


def _patch(function: str, fingerprint: str, make: Callable[..., Any], **more: Any) -> Patch:
    return Patch(
        name=f"cpu-torch-cuda-{function.replace('_', '-')}",
        target=f"torch.cuda:{function}",
        kind="replace",
        distribution="torch",
        versions=">=2.13,<2.14",
        process="every process of OpenRLHF",
        reason="OpenRLHF calls it whatever the machine has, and it raises without a GPU. Only calls that would end "
        "the process get another answer.",
        upstream="OpenRLHF has no device interface; not reported",
        remove_when="OpenRLHF asks deepspeed.accelerator for the device",
        make=make,
        fingerprint=fingerprint,
        **more,
    )


PATCHES = (
    _patch("current_device", "c3055302ad3eb33f", _the_cpu, also_bound=("torch.cuda.random:current_device",)),
    _patch("set_device", "b16beb791c7e59d6", _nothing),
    _patch("synchronize", "489b9f7350c25be3", _nothing),
    _patch("current_stream", "a757284309661923", _nothing),
)
