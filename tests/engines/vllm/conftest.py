# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def real_layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what ``real_layers.py`` prints. Importing vLLM takes seconds, so it runs once."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    meeting = tmp_path_factory.mktemp("layers") / "meeting"
    command = [sys.executable, str(Path(__file__).with_name("real_layers.py")), str(meeting)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found
