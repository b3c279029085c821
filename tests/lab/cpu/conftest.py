# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def python() -> Python:
    """Run Python with these arguments, in an environment that asks for no platform but what is given by name."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        asking = ("VERL_", "FP16_PATCH_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(asking)}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**clean, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=290,
            check=False,
        )

    return run
