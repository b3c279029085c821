# SPDX-License-Identifier: Apache-2.0
"""A node without the package is named before any worker starts: a real Ray cluster of two nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fp16_patch.lab.launch.supervisor import Supervisor

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fp16_patch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""


def two_nodes(tmp_path: Path, *arguments: str) -> str:
    """What the script prints. A Session, because Ray's processes must be gone afterwards whatever happens."""
    import sys
    import time

    log = tmp_path / "log"
    script = Path(__file__).with_name("two_nodes.py")
    session = Supervisor([sys.executable, str(script), *arguments], {"RAY_DEDUP_LOGS": "0"}, log)
    try:
        deadline = time.monotonic() + 200
        while session.running() and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        session.close()
    return log.read_text()


def test_every_node_has_the_package(tmp_path):
    assert "every node is fit" in two_nodes(tmp_path)


def test_a_node_without_the_package_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    said = two_nodes(tmp_path, str(tmp_path))
    assert "fp16-patch is not installed" in said
    assert "fp16_patch: node " in said
    assert "next step: install it" in said
