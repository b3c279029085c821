# SPDX-License-Identifier: Apache-2.0
"""Implement verl's platform interface for a machine without an accelerator."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase

from fp16_patch.lab.cpu.torch_cuda import CpuDeviceId


def _returning(value: Any) -> Callable[..., Any]:
    """Return a method that returns ``value``."""
    return lambda *_, **__: value


class CpuDeviceModule(types.ModuleType):
    """Extend ``torch.cpu`` with the functions of ``torch.cuda`` that verl calls and ``torch.cpu`` lacks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    get_device_name = _returning("cpu")

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

    # There is no device allocator to reset, trim or limit.
    empty_cache = ipc_collect = reset_peak_memory_stats = set_per_process_memory_fraction = _returning(None)


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

    is_available = _returning(True)
    is_platform_available = _returning(False)  # chosen explicitly, never detected
    current_device = _returning(CpuDeviceId("cpu"))
    device_count = _returning(1)
    get_device_capability = _returning((None, None))
    communication_backend_name = _returning("gloo")
    visible_devices_envvar = _returning("CUDA_VISIBLE_DEVICES")  # Ray sets it for its logical "GPU" resource
    ray_resource_name = _returning("GPU")  # logical: ``ray_init.num_gpus=N`` is the number of ranks
    ray_noset_envvars = _returning(())
    is_ipc_supported = _returning(False)  # no device memory to share: verl sends weights through shared memory
    nvtx_range = _returning(nullcontext())  # there is no NVTX
    # One device, synchronous calls, no allocator, no profiler, no CUDA runtime.
    set_device = synchronize = set_allocator_settings = empty_cache = _returning(None)
    profiler_start = profiler_stop = cudart = _returning(None)

    def manual_seed(self, seed: int) -> None:
        """Seed the CPU's generator."""
        torch.manual_seed(seed)

    manual_seed_all = manual_seed
