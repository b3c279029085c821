# SPDX-License-Identifier: Apache-2.0
"""The word "cuda" in code that takes no other answer."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class CudaMeansCpu(TorchFunctionMode):  # type: ignore[misc]  # torch is read through Any
    """Within it, torch makes on the CPU what it is told to make on "cuda", or to move there.

    A tensor's old-style type reads ``torch.cuda.HalfTensor``, as that of one on a GPU: Megatron goes by these names.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.type and len(args) == 1 and not kwargs:
            return function(*args).replace("torch.", "torch.cuda.")
        if function is torch.Tensor.to:
            args = tuple(map(_on_cpu, args))
        if "device" in kwargs:
            kwargs = kwargs | {"device": _on_cpu(kwargs["device"])}
        return function(*args, **kwargs)


_entered = threading.local()


def for_this_thread() -> None:
    """From now on, in this thread. Idempotent."""
    if not hasattr(_entered, "mode"):
        _entered.mode = CudaMeansCpu()
        _entered.mode.__enter__()


def _on_cpu(device: Any) -> Any:
    name = device.type if isinstance(device, torch.device) else device
    return "cpu" if isinstance(name, str) and name.partition(":")[0] == "cuda" else device
