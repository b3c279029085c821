# SPDX-License-Identifier: Apache-2.0
"""Check docs/results-toy.md: its figure is drawn from the recorded runs. Generated documents check its tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def test_the_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import toy_experiment_figure

    toy_experiment_figure.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", ["toy_experiment.py", "recipes_toy.py"])
def test_a_script_starts(script: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, "--help"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
