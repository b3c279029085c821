# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from run_cases import read_results

from fp16_patch import envs
from fp16_patch.precision import Precision

CASES = Path(__file__).with_name("megatron_cases.py")
PLATFORM = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "fp16_patch.lab.cpu.verl,fp16_patch.lab.cpu.megatron",
    "TORCHDYNAMO_DISABLE": "1",
}
FLAG = {
    "VERL_USE_EXTERNAL_MODULES": f"{PLATFORM['VERL_USE_EXTERNAL_MODULES']},fp16_patch.frameworks.verl.worker",
    envs.PRECISION: Precision().to_environment(),
}
SECONDS = 400
Ranks = list[dict[str, Any]]
Results = Callable[[str], Ranks]


@pytest.fixture(scope="session")
def cases_run(run_cases: Callable[..., Any]) -> Iterator[Path]:
    """Run all cases without the flag once. Return the folder of their results."""
    skip_without_megatron()
    with run_cases(CASES, SECONDS, PLATFORM, "stock") as folder:
        yield folder


@pytest.fixture(scope="session")
def flagged_runs(run_cases: Callable[..., Any]) -> Iterator[Path]:
    """Run all cases with the flag once. Return the folder of their results."""
    skip_without_megatron()
    with run_cases(CASES, SECONDS, PLATFORM | FLAG, "flag") as folder:
        yield folder


def skip_without_megatron() -> None:
    if not (find_spec("verl") and find_spec("megatron.bridge")):
        pytest.skip("needs verl, megatron-core and megatron-bridge")


@pytest.fixture
def flagged(flagged_runs: Path) -> Results:
    """Return the same as ``results``, with the flag."""
    return partial(read_results, flagged_runs)
