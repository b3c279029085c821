# SPDX-License-Identifier: Apache-2.0
"""Check the text of report.html against a golden file, and that text of a run is escaped."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from comparison_runs import write_arm

from fp16_patch.lab.comparison.compare import compare

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

GOLDEN = Path(__file__).with_name("report_page.txt")


def words(page: str) -> str:
    """Return the text of a page, one element per line."""
    text = re.sub(r"<[^>]+>", "\n", re.sub(r"(?s)<style>.*?</style>", "", page))
    lines = (" ".join(line.split()) for line in html.unescape(text).splitlines())
    return "\n".join(filter(None, lines)) + "\n"


@pytest.fixture
def page(write_recipe: Callable[..., Path], tmp_path: Path) -> str:
    """Return the page over a completed and a failed arm."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(write_recipe(("some/model", "some/<model> & 'more'")), folder / "recipe.yaml")
    write_arm(folder / "bf16", "bf16", 8.8e-5)
    write_arm(folder / "fp16", "fp16", 1.1e-5)
    result = json.loads((folder / "bf16" / "result.json").read_text())
    (folder / "bf16" / "result.json").write_text(json.dumps(result | {"status": "failed", "error": "<b> & exit 1"}))
    compare(folder, say=lambda _: None)
    return (folder / "report.html").read_text()


def test_page_text_matches_golden(page: str) -> None:
    assert words(page) == GOLDEN.read_text()


def test_markup_in_a_run_is_escaped(page: str) -> None:
    assert "&lt;b&gt; &amp; exit 1" in page
    assert "some/&lt;model&gt; &amp; &#39;more&#39;" in page
