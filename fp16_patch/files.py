# SPDX-License-Identifier: Apache-2.0
"""Write files whole or not at all, and raise one clear error where they cannot be written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fp16_patch.errors import Fp16PatchError

NEXT_STEP = "free disk space there or choose another folder, then run the same command again"


@contextlib.contextmanager
def wrap_os_errors(what: Path | str, next_step: str = NEXT_STEP) -> Iterator[None]:
    """Raise :class:`Fp16PatchError` that names ``what`` in place of an ``OSError``."""
    try:
        yield
    except OSError as error:
        raise Fp16PatchError(f"{what}: {error.strerror or error}", code="write-failed", next_step=next_step) from error


def write_atomically(path: Path | str, content: str | bytes, next_step: str = NEXT_STEP) -> Path:
    """Write ``content`` (text as UTF-8) to ``path`` and return the path. Make the folder if it does not exist.

    The content goes to a temporary file in the same folder, is flushed to the disk, and replaces ``path``: a reader
    never sees half of it.

    Raises:
        Fp16PatchError: The file cannot be written.
    """
    path = Path(path)
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
