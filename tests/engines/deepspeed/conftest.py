# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SECONDS = 300


@pytest.fixture(scope="session")
def zero_run(run_cases: Callable[..., Any]) -> Iterator[Path]:
    """All cases, run once; the folder of their results."""
    with run_cases(Path(__file__).with_name("zero_cases.py"), SECONDS, {"DS_ACCELERATOR": "cpu"}) as folder:
        yield folder


@pytest.fixture(scope="session")
def cases_run(zero_run: Path) -> Path:
    return zero_run
