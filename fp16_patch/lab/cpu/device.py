# SPDX-License-Identifier: Apache-2.0
"""What answers for "the current device" where there is none but the CPU."""

from __future__ import annotations


class CpuDeviceId(str):
    """The device id a framework asks for: ``tensor.to(id)`` reads "cpu", and ``f"cpu:{id}"`` reads "cpu:0".

    An int would not do: ``tensor.to(0)`` means the first accelerator.
    """

    def __format__(self, spec: str) -> str:
        return format(0, spec)
