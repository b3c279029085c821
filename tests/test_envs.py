# SPDX-License-Identifier: Apache-2.0
"""Every environment variable of the package is named in envs.py and listed in docs/environment-variables.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from fp16_patch import envs

ROOT = Path(__file__).parent.parent
NAMES = {value for name, value in vars(envs).items() if name.isupper()}


def test_no_other_module_names_a_variable() -> None:
    named = [
        (path.name, node.value)
        for path in (ROOT / "fp16_patch").rglob("*.py")
        if path.name != "envs.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in NAMES
    ]
    assert len(NAMES) == 11
    assert named == []


def test_docs_list_every_variable() -> None:
    rows = re.findall(r"^\| `(FP16_PATCH\w*)` \|", (ROOT / "docs/environment-variables.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(NAMES)
