# SPDX-License-Identifier: Apache-2.0
"""Write a folder atomically, with a manifest that detects later changes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.output import file_digest

MANIFEST = "world.json"


@contextmanager
def atomic_dir(out: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``out`` when the block ends, and is removed if the block raises.

    Raises:
        Fp16PatchError: If ``out`` exists and is not a toy task, before anything is written.
    """
    out = out.absolute()
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise Fp16PatchError(
            f"{out} exists and is not a toy task",
            code="output-in-the-way",
            allowed=f"a new path, an empty folder, or a folder with a {MANIFEST}",
            next_step="choose another path",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    # In the parent of ``out``: a rename is atomic within one file system only.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        yield new
        if out.exists():
            out.rename(Path(scratch, "old"))
        new.rename(out)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Add the digest of every file in ``folder`` to ``manifest``, and write it to ``folder``."""
    manifest["files"] = {
        str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def verify_manifest(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of ``folder`` if it has the ``expected`` entries and no file has changed, else None."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        as_expected = all(manifest.get(key) == value for key, value in expected.items())
        unchanged = all(file_digest(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if as_expected and unchanged else None
