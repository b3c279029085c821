# SPDX-License-Identifier: Apache-2.0
"""Map the device "cuda" to the CPU, for code that hard-codes it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class CudaToCpu(TorchFunctionMode):  # type: ignore[misc]  # torch is read through Any
    """Make torch create tensors on the CPU, or move them there, when the device is "cuda".

    ``Tensor.type()`` returns ``torch.cuda.HalfTensor``, as for a tensor on a GPU: Megatron checks these names.
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


def enable_in_thread() -> None:
    """Enter :class:`CudaToCpu` in this thread, for good. Idempotent."""
    if not hasattr(_entered, "mode"):
        _entered.mode = CudaToCpu()
        _entered.mode.__enter__()


def _on_cpu(device: Any) -> Any:
    name = device.type if isinstance(device, torch.device) else device
    return "cpu" if isinstance(name, str) and name.partition(":")[0] == "cuda" else device
