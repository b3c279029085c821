# SPDX-License-Identifier: Apache-2.0
"""One run at a time on a machine without GPUs: verl 0.9 names its weight transfer sockets after the Ray job, whose id
is 01000000 in every new local cluster, so two runs would read each other's weights."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def my_turn(say: Callable[[str], None]) -> Iterator[None]:
    """Hold this user's lock for the block; wait, and say so, while another run holds it.

    The lock is the kernel's and ends with the process, however it ends.
    """
    path = Path(tempfile.gettempdir()) / f"fp16_patch-{os.getuid()}.lock"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  waiting for another run on this machine to end (it holds {path})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
