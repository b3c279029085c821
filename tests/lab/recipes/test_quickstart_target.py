# SPDX-License-Identifier: Apache-2.0
"""``make quickstart`` starts the recipe of the chosen framework, or lists the frameworks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fp16_patch.lab.loading.load import find

ROOT = Path(__file__).parents[3]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What make would do, without doing it."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # Under `make test` the outer make would hand its own settings down.
    names = [name for name in os.environ if not name.startswith(("MAKE", "FRAMEWORK", "OUT", "MFLAGS"))]
    return subprocess.run(
        ["make", "-n", *words],
        cwd=ROOT,
        env={name: os.environ[name] for name in names},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "quickstart"),
        (["FRAMEWORK=verl"], "quickstart"),
        (["FRAMEWORK=openrlhf"], "quickstart-openrlhf"),
    ],
)
def test_each_framework_has_its_recipe_and_folder(words: list[str], recipe: str) -> None:
    assert make("quickstart", *words).stdout.endswith(f"recipes run {recipe} --out runs/{recipe}\n")
    assert find(recipe)


@pytest.mark.parametrize("value", ["trl", "", "verl openrlhf"])
def test_another_framework_is_one_clear_error(value: str) -> None:
    done = make("quickstart", f"FRAMEWORK={value}")
    assert done.returncode != 0
    assert f"FRAMEWORK={value} is unknown; allowed: verl, openrlhf" in done.stderr
    assert len(done.stderr.splitlines()) == 1
