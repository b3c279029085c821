# SPDX-License-Identifier: Apache-2.0
"""Provide a stream and an event for a device whose calls are synchronous."""

from __future__ import annotations


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
