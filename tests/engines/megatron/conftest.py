# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SECONDS = 350
REFERENCE = Path(__file__).parents[1] / "fsdp"
"""Where test_scaler.py and its model of the scale are."""
SUPPORT = Path(__file__).parents[2] / "support"
"""Where what test_scaler.py imports is."""


@pytest.fixture(scope="session")
def cases_run(run_cases: Callable[..., Any]) -> Iterator[Path]:
    """All cases, run once; the folder of their results."""
    script, environment = Path(__file__).with_name("core_cases.py"), {"TORCHDYNAMO_DISABLE": "1"}
    with run_cases(script, SECONDS, environment, also=[REFERENCE, SUPPORT]) as folder:
        yield folder
