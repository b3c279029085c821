# SPDX-License-Identifier: Apache-2.0
"""verl's platform interface for a machine without an accelerator."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase

from fp16_patch.lab.cpu.device import CpuDeviceId


class CpuDeviceModule(types.ModuleType):
    """``torch.cpu``, with the functions of ``torch.cuda`` that verl calls and ``torch.cpu`` lacks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def get_device_name(self, device: object = None) -> str:
        return "cpu"

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        """(available, total) bytes of the machine."""
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    def _resident(self, device: object = None) -> int:
        """Bytes this process holds; the operating system keeps no peak that could be reset."""
        return int(psutil.Process().memory_info().rss)

    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = _resident

    def _nothing(self, *_: object, **__: object) -> None:
        """There is no device allocator to reset, trim or limit."""

    empty_cache = ipc_collect = reset_peak_memory_stats = set_per_process_memory_fraction = _nothing


class PlatformCPU(PlatformBase):  # type: ignore[misc]  # verl ships no types
    """One CPU "device" a process; ranks talk over gloo and weights travel through shared memory."""

    _module = CpuDeviceModule("fp16_patch.lab.cpu.device")

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # never detected, only asked for: a GPU machine must not end up here

    def current_device(self) -> CpuDeviceId:
        return CpuDeviceId("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # the one Ray sets for its logical "GPU" resource

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"  # a logical resource: ray_init.num_gpus=N is the number of ranks

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False  # no device memory to share; verl then sends weights through shared memory

    def cudart(self) -> None:
        return None
