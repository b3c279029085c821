# SPDX-License-Identifier: Apache-2.0
"""Handle SIGINT and SIGTERM during a run. Outside the main thread this has no effect."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def _handle(handler: Callable[[int], None], *numbers: signal.Signals) -> Iterator[None]:
    """Call ``handler`` on these signals until the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, _frame: handler(number)) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, so that the run is cleaned up as after Ctrl-C."""

    def leave(number: int) -> None:
        raise SystemExit(128 + number)

    with _handle(leave, signal.SIGTERM):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the end of the block, which cleans up."""
    received: list[int] = []
    with _handle(received.append, signal.SIGINT, signal.SIGTERM):
        yield
    if received:
        signal.raise_signal(received[0])
