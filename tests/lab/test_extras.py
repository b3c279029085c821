# SPDX-License-Identifier: Apache-2.0
"""A package that only some commands need is one error when it is missing, naming the extra."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.cli import main
from fp16_patch.lab import extras

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_recipes_compare_without_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = tuple(f"fp16_patch.{name}" for name in ("lab.analysis", "lab.comparison", "lab.logs", "mismatch"))
    for name in [name for name in sys.modules if name.startswith(loaded)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert main(["recipes", "compare", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "numpy" in error
    assert "fp16-patch[lab]" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("module", [*extras.LAB, *extras.FRAMEWORK])
def test_each_package_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    from_where = "fp16-patch[lab]" if module in extras.LAB else "verl or OpenRLHF"
    with raises_code("not-installed", "the plots", module.replace("_", "-"), from_where), extras.required("the plots"):
        importlib.import_module(module)


def test_another_missing_module_is_not_ours_to_explain() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), extras.required():
        importlib.import_module("no_such_module")


def test_the_extra_installs_what_the_errors_say() -> None:
    text = PYPROJECT.read_text()
    lists = dict(re.findall(r"^(lab|math|plots) = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL))
    assert "fp16-patch[math,plots]" in lists["lab"]
    installed = set(re.findall(r'^  "([\w-]+)', "".join(lists.values()), re.MULTILINE)) - {"fp16-patch"}
    assert installed == {module.replace("_", "-") for module in extras.LAB}
