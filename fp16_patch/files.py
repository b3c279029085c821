# SPDX-License-Identifier: Apache-2.0
"""Write files whole or not at all, and raise one clear error where they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fp16_patch.errors import Fp16PatchError

NEXT_STEP = "free disk space there or choose another folder, then run the same command again"


NOT_A_FILE = "give the path of a file, in a folder that can be written"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def wrap_os_errors(what: Path | str, next_step: str = NEXT_STEP) -> Iterator[None]:
    """Raise :class:`Fp16PatchError` that names ``what`` in place of an ``OSError``."""
    try:
        yield
    except OSError as error:
        if next_step == NEXT_STEP and error.errno not in _OF_THE_DISK:
            next_step = NOT_A_FILE
        raise Fp16PatchError(f"{what}: {error.strerror or error}", code="write-failed", next_step=next_step) from error


def check_can_write(path: Path | str) -> str | None:
    """Return why ``write_atomically`` could not write ``path``; None if it could. Makes nothing that stays.

    It replaces what is there, so only a regular file may be.
    """
    if str(path).endswith("/") or os.path.isdir(path):
        return "it is a folder"
    path = Path(os.path.abspath(path))
    try:
        if path.exists() and not path.is_file():
            return "it is not a regular file"
        path.with_name(f".{path.name}.{os.getpid()}").exists()
        folder = next(parent for parent in path.parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".fp16_patch-", dir=folder):
            return None
    except OSError as error:
        return f"it cannot be written: {error.strerror or error}"


def write_atomically(path: Path | str, content: str | bytes, next_step: str = NEXT_STEP) -> Path:
    """Write ``content`` (text as UTF-8) to ``path`` and return the path. Make the folder if it does not exist.

    The content goes to a temporary file in the same folder, is flushed to the disk, and replaces ``path``: a reader
    never sees half of it.

    Raises:
        Fp16PatchError: The file cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise Fp16PatchError(f"{path}: it is a folder", code="write-failed", next_step=NOT_A_FILE)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with wrap_os_errors(path, next_step):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path
