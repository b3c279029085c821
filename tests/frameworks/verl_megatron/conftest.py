# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fp16_patch
from fp16_patch import envs
from fp16_patch.precision import Precision

HERE = Path(__file__).parent
FORKING = HERE.parents[1] / "support"
"""Where engine_ranks.py and engine_building.py are."""
PLATFORM = "fp16_patch.lab.cpu.verl,fp16_patch.lab.cpu.megatron"
SECONDS = 400
Ranks = list[dict[str, Any]]
Results = Callable[[str], Ranks]


@pytest.fixture(scope="session")
def megatron_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All cases without the flag, run once; the folder of their results."""
    yield from run("stock", tmp_path_factory.mktemp("megatron"), PLATFORM, {})


@pytest.fixture(scope="session")
def flagged_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All cases with the flag, run once; the folder of their results."""
    flag = {envs.PRECISION: Precision().to_environment()}
    yield from run("flag", tmp_path_factory.mktemp("flagged"), f"{PLATFORM},fp16_patch.frameworks.verl.worker", flag)


def run(kind: str, folder: Path, modules: str, flag: dict[str, str]) -> Iterator[Path]:
    """Run the cases of ``kind``, with these modules for verl to import."""
    if not (find_spec("verl") and find_spec("megatron.bridge")):
        pytest.skip("needs verl, megatron-core and megatron-bridge")
    paths = [str(Path(fp16_patch.__file__).parents[1]), str(FORKING), os.environ.get("PYTHONPATH", "")]
    environment = {name: value for name, value in os.environ.items() if name != envs.PRECISION} | {
        "PYTHONPATH": os.pathsep.join(paths),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": modules,
        envs.REPORTS: str(folder / "reports"),
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "megatron_cases.py"), kind, str(folder)],
            env=environment | flag,
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
def results(megatron_runs: Path) -> Results:
    """``results(case)``: what each rank's run of the case returned, without the flag."""
    return partial(read, megatron_runs)


@pytest.fixture
def flagged(flagged_runs: Path) -> Results:
    """As ``results``, with the flag."""
    return partial(read, flagged_runs)


def read(folder: Path, case: str) -> Ranks:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{case}.?.json"))]
    assert found, f"the case {case} did not run:\n{(folder / 'log').read_text(errors='replace')[-3000:]}"
    for rank, outcome in enumerate(found):
        assert "error" not in outcome, f"rank {rank} of the case {case} failed:\n{outcome['error']}"
    return [outcome["result"] for outcome in found]
