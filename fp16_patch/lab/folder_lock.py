# SPDX-License-Identifier: Apache-2.0
"""One process at a time writes into a folder."""

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
"""Stays in a folder that was once written into."""


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Nobody else writes into ``out`` meanwhile. A process that was killed keeps nobody out.

    Raises :class:`Fp16PatchError`, naming the process, where somebody does, and where ``out`` cannot be written to.
    """
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("ab+", buffering=0)  # with a buffer, closing fails again where the disk is full
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise Fp16PatchError(
                f"{out} is in use: process {lock.read().decode().strip() or 'unknown'} writes into it",
                code="folder-in-use",
                next_step="wait for it, or choose another --out",
            ) from error
        with _writing(out):
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n".encode())
        yield


def _writing(out: Path) -> AbstractContextManager[None]:
    return files.wrap_os_errors(f"--out {out}", "choose a folder you can write to, with room in it")


def in_use(out: Path) -> bool:
    """Somebody is in :func:`alone` with ``out``. Of another machine that is known where the file system tells."""
    try:
        with (out / LOCK).open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once
    except BlockingIOError:
        return True
    except OSError:  # no lock, or none that can be read
        return False
    return False
