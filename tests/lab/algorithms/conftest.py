# SPDX-License-Identifier: Apache-2.0
"""Each framework's losses, computed once by a process of its own: they want the CPU platform from the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PLATFORM = {
    "verl": {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "fp16_patch.lab.cpu.verl"},
    "openrlhf": {"FP16_PATCH_PLATFORM": "cpu"},
}
SECONDS = 300
Losses = Callable[[str], dict[str, tuple[float, list[float]]]]


@pytest.fixture(scope="session")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Losses]:
    """``losses(framework)``: case -> loss and gradient."""
    folder = tmp_path_factory.mktemp("losses")
    processes = {}
    for framework, platform in PLATFORM.items():
        script = Path(__file__).with_name(f"{framework}_losses.py")
        environment = {**os.environ, **platform, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with (folder / f"{framework}.log").open("wb") as log:
            processes[framework] = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(script), str(folder / f"{framework}.json")],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def read(framework: str) -> dict[str, tuple[float, list[float]]]:
        exit_code = processes[framework].wait(timeout=SECONDS)
        assert exit_code == 0, (folder / f"{framework}.log").read_text(errors="replace")[-3000:]
        found: dict[str, tuple[float, list[float]]] = json.loads((folder / f"{framework}.json").read_text())
        return found

    yield read
    for process in processes.values():
        process.kill()
        process.wait()
