# SPDX-License-Identifier: Apache-2.0
"""One process at a time writes into a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fp16_patch.errors import Fp16PatchError

_LOCK = ".lock"


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Nobody else writes into ``out`` meanwhile. A process that was killed keeps nobody out.

    Raises :class:`Fp16PatchError`, naming the process, where somebody does, and where ``out`` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise Fp16PatchError(f"--out {out}: {error.strerror}", next_step="choose a folder you can write to") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise Fp16PatchError(
                f"{out} is in use: process {lock.read().strip() or 'unknown'} writes into it",
                next_step="wait for it, or choose another --out",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
