# SPDX-License-Identifier: Apache-2.0
"""A trainer to launch in tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module name of the stand-in trainer, importable in subprocesses."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return "stand_in_trainer"


@pytest.fixture
def start_launcher(stand_in: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start, in a process of its own, a run into ``tmp_path / "run"`` that leaves traces and does not end by itself."""

    def start(recipe: Path, *, mode: str, jobs: int | None = None) -> subprocess.Popen[str]:
        program = (
            "import sys; from pathlib import Path; from fp16_patch.lab.launch.run import run_recipe; "
            f"run_recipe(Path(sys.argv[1]), Path(sys.argv[2]), overrides=sys.argv[3:], "
            f"jobs={jobs}, module={stand_in!r})"
        )
        arguments = [str(recipe), str(tmp_path / "run"), f"+stand_in.mode={mode}", f"+stand_in.traces={tmp_path}"]
        path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ["PYTHONPATH"]])
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
