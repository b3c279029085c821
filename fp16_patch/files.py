# SPDX-License-Identifier: Apache-2.0
"""What keeps a file from being written is one error: a full disk, a name too long, a folder for reading only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fp16_patch.errors import Fp16PatchError


@contextlib.contextmanager
def writing(
    what: Path | str, next_step: str = "make room there or choose another --out; then the same command"
) -> Iterator[None]:
    """Raises :class:`Fp16PatchError`, naming ``what`` is written, in place of ``OSError``."""
    try:
        yield
    except OSError as error:
        raise Fp16PatchError(f"{what}: {error.strerror or error}", code="write-failed", next_step=next_step) from error
