# SPDX-License-Identifier: Apache-2.0
"""Run cases in forked ranks of one process (engine_ranks.py), and read what they wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fp16_patch
from fp16_patch import envs

SUPPORT = Path(__file__).parent
"""Where engine_ranks.py is."""
Outcomes = Callable[[str], list[dict[str, Any]]]


@contextmanager
def start_cases(
    script: Path, folder: Path, environment: Mapping[str, str], *arguments: str, also: Sequence[Path] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``python script *arguments folder``, which writes results and a log to ``folder``. Kill its ranks at exit.

    The script can import what is in its own folder, in tests/support and in the folders ``also``.
    """
    folder.mkdir(exist_ok=True)
    paths = [str(Path(fp16_patch.__file__).parents[1]), str(script.parent), str(SUPPORT), *map(str, also)]
    whole = {name: value for name, value in os.environ.items() if name != envs.PRECISION} | {
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        envs.REPORTS: str(folder / "reports"),
        **environment,
    }
    command = [sys.executable, str(script), *arguments, str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=whole, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its ranks too, should any be left
        process.wait()


@pytest.fixture(scope="session")
def run_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``with run_cases(script, seconds, environment) as folder``: all its cases, run once; the folder of their results.

    Further arguments are those of :func:`start_cases`.
    """

    @contextmanager
    def run(
        script: Path, seconds: float, environment: Mapping[str, str], *arguments: str, also: Sequence[Path] = ()
    ) -> Iterator[Path]:
        folder = tmp_path_factory.mktemp(script.stem)
        with start_cases(script, folder, environment, *arguments, also=also) as process:
            process.wait(timeout=seconds)
            yield folder

    return run


def read_outcomes(folder: Path, case: str) -> list[dict[str, Any]]:
    """Return what each rank of the case wrote: ``{"result": ...}`` or ``{"error": traceback, "code": ...}``."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{case}.*.json"))]
    assert found, f"the case {case} did not run:\n{(folder / 'log').read_text(errors='replace')[-3000:]}"
    return found


def read_results(folder: Path, case: str) -> list[dict[str, Any]]:
    """Return what each rank's run of the case returned."""
    found = read_outcomes(folder, case)
    for rank, outcome in enumerate(found):
        assert "error" not in outcome, f"rank {rank} of the case {case} failed:\n{outcome['error']}"
    return [outcome["result"] for outcome in found]


@pytest.fixture
def log(cases_run: Path) -> str:
    """What the ranks printed. ``cases_run`` is each folder's own."""
    return (cases_run / "log").read_text(errors="replace")


@pytest.fixture
def outcomes(cases_run: Path) -> Outcomes:
    """``outcomes(case)``: see :func:`read_outcomes`."""
    return partial(read_outcomes, cases_run)


@pytest.fixture
def results(cases_run: Path) -> Outcomes:
    """``results(case)``: see :func:`read_results`."""
    return partial(read_results, cases_run)
