# SPDX-License-Identifier: Apache-2.0
"""Processes are found by their environment as soon as they start."""

from __future__ import annotations

import os
import subprocess
import sys

from fp16_patch.lab.launch import processes


def test_the_environment_of_a_process_that_has_just_become_another_program() -> None:
    """Linux shows an empty environment for a moment. A missed process was left running."""
    for _ in range(120):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            env=os.environ | {"FP16_PATCH_TEST": "found"},
            start_new_session=True,
        )
        try:
            assert b"FP16_PATCH_TEST=found" in processes.environment(child.pid)
        finally:
            child.kill()
            child.wait()


def test_a_process_that_has_ended_has_no_environment() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert processes.environment(child.pid) == []
