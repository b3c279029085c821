# SPDX-License-Identifier: Apache-2.0
"""``scripts/setup.sh``, run twice at once in one folder, with a stub in place of Python and pip."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "setup.sh"
TOOLS = ["awk", "bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "mv", "rm", "sleep", "tee"]
PYTHON = """#!/usr/bin/env bash
case "$*" in
  -c*) exec "$REAL_PYTHON" "$@" ;;
  --version) echo Python 3.11 ;;
  "-m venv"*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; echo venv >>"$TRACE" ;;
  *) echo start >>"$TRACE"; sleep "$SECONDS_OF_PIP"; echo end >>"$TRACE" ;;
esac
"""
Start = Callable[[float], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``setup.sh`` on a copy of its surroundings, each pip taking so many seconds."""
    for folder in ("bin", "scripts", "requirements"):
        (tmp_path / folder).mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts" / "setup.sh")
    (tmp_path / "requirements" / "cpu.txt").write_text("a==1\n")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "stub").write_text(PYTHON)
    (tmp_path / "stub").chmod(0o755)
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool} here"))
    (tmp_path / "bin" / "env").symlink_to("/usr/bin/env")
    running: list[subprocess.Popen[str]] = []

    def run(seconds: float) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                ["bash", "scripts/setup.sh", ".venv"],
                cwd=tmp_path,
                env={
                    "PATH": str(tmp_path / "bin"),
                    "REAL_PYTHON": sys.executable,
                    "PYTHON": str(tmp_path / "stub"),
                    "TRACE": str(tmp_path / "trace"),
                    "SECONDS_OF_PIP": str(seconds),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield run
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until_it_installs(folder: Path) -> None:
    for _ in range(200):
        if (folder / "trace").exists() and "start" in (folder / "trace").read_text():
            return
        time.sleep(0.05)
    pytest.fail("pip was not started")


def test_the_second_of_two_runs_waits_and_finds_the_environment_made(start: Start, tmp_path: Path) -> None:
    first = start(0.5)
    until_it_installs(tmp_path)
    second = start(0.5)
    (out, _), (out_of_second, _) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), out + out_of_second
    assert "waiting" in out_of_second
    assert "up to date" in out_of_second
    assert (tmp_path / "trace").read_text().split() == ["venv", "start", "end", "start", "end"]


def test_many_runs_at_once_make_one_environment(start: Start, tmp_path: Path) -> None:
    runs = [start(0.1) for _ in range(6)]
    outs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 6, outs
    assert (tmp_path / "trace").read_text().split() == ["venv", "start", "end", "start", "end"]


def test_a_killed_run_keeps_nobody_waiting(start: Start, tmp_path: Path) -> None:
    killed = start(100)
    until_it_installs(tmp_path)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    runs = [start(0.1) for _ in range(3)]
    outs = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 3, outs
    assert (tmp_path / "trace").read_text().split() == ["venv", "start", "venv", "start", "end", "start", "end"]
