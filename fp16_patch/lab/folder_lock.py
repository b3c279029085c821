# SPDX-License-Identifier: Apache-2.0
"""Let only one process at a time write into a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fp16_patch import files
from fp16_patch.errors import Fp16PatchError

LOCK = ".lock"
"""The lock file; it stays in the folder."""


@contextlib.contextmanager
def exclusive_lock(out: Path) -> Iterator[None]:
    """Hold the lock of ``out``, and make the folder if it is missing. A killed process leaves no lock behind.

    Raises :class:`Fp16PatchError` if another process holds it (and names that process) or ``out`` is not writable.
    """
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("ab+", buffering=0)  # with a buffer, closing fails again on a full disk
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise Fp16PatchError(
                f"{out} is in use: process {lock.read().decode().strip() or 'unknown'} writes to it",
                code="folder-in-use",
                next_step="wait for it, or choose another --out",
            ) from error
        with _writing(out):
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n".encode())
        yield


def _writing(out: Path) -> AbstractContextManager[None]:
    return files.wrap_os_errors(f"--out {out}", "choose a folder that you can write to, with free disk space")


def is_locked(out: Path) -> bool:
    """Return whether a process holds the lock of ``out``, on any machine if the file system shares locks."""
    try:
        with (out / LOCK).open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
    except OSError as error:
        return isinstance(error, BlockingIOError)  # else there is no readable lock
    return False
