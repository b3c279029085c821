# SPDX-License-Identifier: Apache-2.0
"""Processes are found by their environment from their first moment on."""

from __future__ import annotations

import os
import subprocess
import sys

from fp16_patch.lab.launch import processes


def test_the_environment_of_a_process_that_has_just_become_another_program() -> None:
    """Linux shows none for a moment, in a quarter of the cases here: whoever was missed was left running."""
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


def test_one_that_is_gone_has_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert processes.environment(child.pid) == []
