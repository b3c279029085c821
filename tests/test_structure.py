# SPDX-License-Identifier: Apache-2.0
"""Files stay short enough to read: 350 lines in the package, 450 in the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("folder", "most"), [("fp16_patch", 350), ("tests", 450)])
def test_no_file_is_too_long(folder: str, most: int) -> None:
    lines = {file: len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert lines, f"no files in {folder}"
    too_long = {str(file.relative_to(ROOT)): count for file, count in lines.items() if count > most}
    assert not too_long, f"split them, {most} lines at most: {too_long}"


def test_every_folder_that_has_a_duration_exists() -> None:
    """A folder that was renamed would start last in ``make test``, see tests/conftest.py."""
    recorded = json.loads((ROOT / "tests" / "durations.json").read_text())["folders"]
    assert "tests/end_to_end/verl" in recorded
    gone = [folder for folder in recorded if not (ROOT / folder).is_dir()]
    assert not gone, f"rename them in tests/durations.json and docs/test-durations.md: {gone}"
