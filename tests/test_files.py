# SPDX-License-Identifier: Apache-2.0
"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.files import write_atomically


def test_a_file_is_replaced_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    assert write_atomically(path, "old\n") == path
    write_atomically(path, "new\n")
    assert path.read_text() == "new\n"
    assert os.listdir(path.parent) == ["b.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = write_atomically(tmp_path / "b.json", "old\n")
    monkeypatch.setattr(os, "fsync", full)
    with raises_code("write-failed", str(path), "No space left on device", "next step: delete something"):
        write_atomically(path, "new\n", "delete something")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["b.json"]
