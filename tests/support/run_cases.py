# SPDX-License-Identifier: Apache-2.0
"""Cases that run in forked ranks of one process (engine_ranks.py), and reading what they wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import fp16_patch
from fp16_patch import envs

FORKING = Path(__file__).parent
"""Where engine_ranks.py is."""
Outcomes = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def run_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``with run_cases(script, seconds, environment) as folder``: all its cases, run once; the folder of their results.

    The script can import what lies beside it, engine_ranks, and what is in the folders ``also``.
    """

    @contextmanager
    def run(script: Path, seconds: float, environment: Mapping[str, str], also: Sequence[Path] = ()) -> Iterator[Path]:
        folder = tmp_path_factory.mktemp(script.stem)
        paths = [str(Path(fp16_patch.__file__).parents[1]), str(script.parent), str(FORKING), *map(str, also)]
        whole = {name: value for name, value in os.environ.items() if name != envs.PRECISION} | {
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "FP16_PATCH_REPORTS": str(folder / "reports"),
            **environment,
        }
        command = [sys.executable, str(script), str(folder)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=whole, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(timeout=seconds)
            yield folder
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its ranks too, should any be left
            process.wait()

    return run


@pytest.fixture
def log(cases_run: Path) -> str:
    """What the ranks printed. ``cases_run`` is each folder's own."""
    return (cases_run / "log").read_text(errors="replace")


@pytest.fixture
def outcomes(cases_run: Path, log: str) -> Outcomes:
    """``outcomes(case)``: what each rank wrote, ``{"result": ...}`` or ``{"error": traceback}``."""

    def read(case: str) -> list[dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in sorted(cases_run.glob(f"{case}.*.json"))]
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
