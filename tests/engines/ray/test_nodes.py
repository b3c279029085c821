# SPDX-License-Identifier: Apache-2.0
"""A node without the package is named, and a node that the run does not use is not asked: a real Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ray_nodes import HIDE, wait_for

from fp16_patch.lab.launch.supervisor import Supervisor

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return step -> what three_nodes.py printed in it. A supervisor ends Ray's processes whatever happens."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "sitecustomize.py").write_text(HIDE)
    log, script = folder / "log", Path(__file__).with_name("three_nodes.py")
    session = Supervisor([sys.executable, str(script), str(folder)], {"RAY_DEDUP_LOGS": "0"}, log)
    try:
        wait_for(lambda: not session.running(), session, log, seconds=200)
    finally:
        session.close()
    steps = log.read_text().split("=== ")[1:]
    return {name: text for name, _, text in (step.partition("\n") for step in steps)}


def not_asked(text: str) -> list[str]:
    return [line for line in text.splitlines() if "was not asked" in line]


def test_a_node_that_cannot_hold_a_worker_is_not_asked(said):
    step = said["their node has no GPU"]
    assert "fit" in step
    lines = not_asked(step)
    assert len(lines) == 2
    assert all("the workers need 1 GPU, 1 CPU on one node" in line for line in lines)
    assert "it has 4 CPU free" in "".join(lines)


def test_the_log_names_each_node_that_was_not_asked_once(said):
    assert len(not_asked("".join(said.values()))) == 3  # ours too, which has no 9 GPUs


def test_a_busy_node_is_asked_if_no_other_fits(said):
    assert "fit" in said["our node is busy"]
    assert "fit" in said["an actor on our node"]


@pytest.mark.parametrize("step", ["their node fits", "an actor on their node", "a setup hook of this package"])
def test_a_node_without_the_package_is_named(said, step):
    assert "('node-unreachable',)" in said[step]
    assert "fp16-patch is not installed" in said[step]
    assert "next step: install it" in said[step]
