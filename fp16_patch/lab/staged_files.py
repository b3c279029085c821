# SPDX-License-Identifier: Apache-2.0
"""Write several files into a folder, all of them or none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_files(folder: Path, first: str) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those in ``folder`` at the end, the one named ``first`` first.

    If the block raises, ``folder`` keeps its files. If the process is killed between two files, ``first`` is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Inside ``folder``: a rename is atomic within one file system only.
    with tempfile.TemporaryDirectory(prefix=f".{first}.", dir=folder, ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name != first):
            file.replace(folder / file.name)
