# SPDX-License-Identifier: Apache-2.0
"""Provide the current device's id on a machine without an accelerator."""

from __future__ import annotations


class CpuDeviceId(str):
    """Act as a device id: ``tensor.to(id)`` means "cpu", and ``f"cpu:{id}"`` is "cpu:0".

    An int does not work: ``tensor.to(0)`` means the first accelerator.
    """

    def __format__(self, spec: str) -> str:
        return format(0, spec)
