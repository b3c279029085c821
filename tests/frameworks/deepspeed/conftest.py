# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import fp16_patch
from fp16_patch.precision import ENVIRONMENT_VARIABLE

HERE = Path(__file__).parent
FORKING = HERE.parent / "verl"
"""Where engine_ranks.py is."""
SECONDS = 300
Outcomes = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def zero_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All cases, run once; the folder of their results."""
    folder = tmp_path_factory.mktemp("zero")
    paths = [str(Path(fp16_patch.__file__).parents[1]), str(HERE), str(FORKING), os.environ.get("PYTHONPATH", "")]
    environment = {name: value for name, value in os.environ.items() if name != ENVIRONMENT_VARIABLE} | {
        "PYTHONPATH": os.pathsep.join(paths),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "FP16_PATCH_REPORTS": str(folder / "reports"),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "zero_cases.py"), str(folder)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        process.wait(timeout=SECONDS)
        yield folder
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its ranks too, should any be left
        process.wait()


@pytest.fixture
def log(zero_run: Path) -> str:
    """What the ranks printed."""
    return (zero_run / "log").read_text(errors="replace")


@pytest.fixture
def outcomes(zero_run: Path, log: str) -> Outcomes:
    """``outcomes(case)``: what each rank wrote, ``{"result": ...}`` or ``{"error": traceback}``."""

    def read(case: str) -> list[dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in sorted(zero_run.glob(f"{case}.*.json"))]
        assert found, f"the case {case} did not run:\n{log[-3000:]}"
        return found

    return read


@pytest.fixture
def results(outcomes: Outcomes) -> Outcomes:
    """``results(case)``: what each rank's run of the case returned."""

    def read(case: str) -> list[dict[str, Any]]:
        found = outcomes(case)
        for rank, outcome in enumerate(found):
            assert "error" not in outcome, f"rank {rank} of the case {case} failed:\n{outcome['error']}"
        return [outcome["result"] for outcome in found]

    return read
