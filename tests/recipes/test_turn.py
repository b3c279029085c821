# SPDX-License-Identifier: Apache-2.0
"""Two runs on one machine wait for each other; a run that was killed holds nothing."""

from __future__ import annotations

import subprocess
import sys
import time

from fp16_patch.recipes.turn import my_turn

HOLD = """
import sys, time
from fp16_patch.recipes.turn import my_turn
with my_turn(print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_waits_until_the_first_is_gone(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        said = []

        def say(line: str) -> None:
            said.append(line)
            first.kill()  # the lock of a killed process is released by the kernel

        started = time.monotonic()
        with my_turn(say):
            assert time.monotonic() - started < 30
        assert len(said) == 1
        assert "waiting for another run" in said[0]
    finally:
        first.kill()
        first.wait()
