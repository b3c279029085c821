# SPDX-License-Identifier: Apache-2.0
"""A folder that appears in one piece or not at all, and that can tell whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError

MANIFEST = "world.json"


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that takes its place when the block ends, and vanishes when it raises.

    Raises ``Fp16PatchError``, before anything is made, when ``out`` exists and holds no world.
    """
    out = out.absolute()
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise Fp16PatchError(
            f"{out} exists and is not a toy world",
            code="output-in-the-way",
            allowed=f"a new path, an empty folder, or a folder with a {MANIFEST}",
            next_step="choose another path",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside ``out``, not in the system's temporary folder: a rename is atomic within one file system only.
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new = scratch / "new"
        new.mkdir()
        yield new
        if out.exists():
            out.rename(scratch / "old")
        new.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Add the digest of every file in ``folder`` to ``manifest`` and write it there."""
    manifest["files"] = {
        str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def intact(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of ``folder`` if it says ``wanted`` and every file is as it was sealed, else ``None``."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if any(manifest.get(key) != value for key, value in wanted.items()):
            return None
        unchanged = all(_digest(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if unchanged else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
