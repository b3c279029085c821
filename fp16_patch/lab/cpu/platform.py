# SPDX-License-Identifier: Apache-2.0
"""Implement verl's platform interface for a machine without an accelerator."""

from __future__ import annotations

import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase

from fp16_patch.lab.cpu.torch_cuda import CpuDeviceId


class CpuDeviceModule(types.ModuleType):
    """Extend ``torch.cpu`` with the functions of ``torch.cuda`` that verl calls and ``torch.cpu`` lacks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def get_device_name(self, device: object = None) -> str:
        """Return "cpu"."""
        return "cpu"

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        """Return the state of the CPU's generator."""
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        """Set the state of the CPU's generator."""
        torch.set_rng_state(state)

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        """Return the machine's available and total memory, in bytes."""
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    def _resident(self, device: object = None) -> int:
        """Return the bytes that this process holds; the operating system keeps no peak that can be reset."""
        return int(psutil.Process().memory_info().rss)

    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = _resident

    def _no_op(self, *_: object, **__: object) -> None:
        """Do nothing: there is no device allocator to reset, trim or limit."""

    empty_cache = ipc_collect = reset_peak_memory_stats = set_per_process_memory_fraction = _no_op


class PlatformCPU(PlatformBase):  # type: ignore[misc]  # verl ships no types
    """Present one CPU "device" per process. Ranks use gloo; weights are sent through shared memory."""

    _module = CpuDeviceModule("fp16_patch.lab.cpu.platform")

    @property
    def device_name(self) -> str:
        """Return "cpu"."""
        return "cpu"

    vendor_name = device_name

    @property
    def device_module(self) -> types.ModuleType:
        """Return the module that verl uses in place of ``torch.cuda``."""
        return self._module

    def is_available(self) -> bool:
        """Return True."""
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Return False: the platform is only chosen explicitly, never detected."""
        return False

    def current_device(self) -> CpuDeviceId:
        """Return the CPU's device id."""
        return CpuDeviceId("cpu")

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def _no_op(self, *_: object, **__: object) -> None:
        """Do nothing: one device, synchronous calls, no allocator, no profiler, no CUDA runtime."""

    set_device = synchronize = set_allocator_settings = empty_cache = _no_op
    profiler_start = profiler_stop = cudart = _no_op

    def manual_seed(self, seed: int) -> None:
        """Seed the CPU's generator."""
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """Return no compute capability."""
        return None, None

    def communication_backend_name(self) -> str:
        """Return "gloo"."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return the variable that Ray sets for its logical "GPU" resource."""
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> AbstractContextManager[None]:
        """Return a context that does nothing: there is no NVTX."""
        return nullcontext()

    def ray_resource_name(self) -> str:
        """Return "GPU", a logical resource: ``ray_init.num_gpus=N`` is the number of ranks."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return no variables."""
        return []

    def is_ipc_supported(self) -> bool:
        """Return False: there is no device memory to share, so verl sends weights through shared memory."""
        return False
