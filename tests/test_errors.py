# SPDX-License-Identifier: Apache-2.0
"""Every error has a code that stays when its English changes, through combining, prefixing and pickling."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

from fp16_patch.errors import Fp16PatchError, combine_errors

ROOT = Path(__file__).resolve().parents[1]
SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")


def constructions() -> dict[str, ast.Call]:
    """Return every ``Fp16PatchError(...)`` of the package by ``file:line``."""
    found = {}
    for folder in ("fp16_patch", "hydra_plugins"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Fp16PatchError":
                    found[f"{file.relative_to(ROOT)}:{node.lineno}"] = node
    return found


def test_every_error_is_given_a_literal_slug_as_its_code() -> None:
    found = constructions()
    assert len(found) > 150
    wrong = {}
    for place, call in found.items():
        code = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
        choices = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
        codes = [choice.value for choice in choices if isinstance(choice, ast.Constant)]
        if len(codes) < len(choices) or not all(isinstance(code, str) and SLUG.fullmatch(code) for code in codes):
            wrong[place] = ast.unparse(call)
    assert wrong == {}


@pytest.mark.parametrize(
    "code", ["", "Unknown-setting", "unknown setting", "unknown_setting", "unknown", "-a-b", "a--b"]
)
def test_what_is_not_a_slug_is_not_a_code(code: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(code))):
        Fp16PatchError("x", code=code)


def test_one_error_keeps_everything_through_pickle() -> None:
    error = Fp16PatchError("a=1", code="unknown-setting", allowed="b", next_step="remove it")
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.codes) == ("unknown-setting", ("unknown-setting",))
    assert (again.what, again.allowed, again.next_step, str(again)) == ("a=1", "b", "remove it", str(error))


def test_combined_errors_have_the_codes_of_all() -> None:
    one, two = Fp16PatchError("a=1", code="unknown-setting"), Fp16PatchError("b=2", code="wrong-type")
    assert combine_errors([one, one]) is one
    combined = combine_errors([one, two, one])
    for error in (combined, pickle.loads(pickle.dumps(combined)), combined.prefixed("x.yaml")):
        assert error.code == "several-problems"
        assert error.codes == ("unknown-setting", "wrong-type")
    assert combine_errors([combined, Fp16PatchError("c=3", code="key-missing")]).codes == (
        *combined.codes,
        "key-missing",
    )


def test_a_prefix_changes_what_was_found_only() -> None:
    error = Fp16PatchError("a=1", code="unknown-setting", allowed="b", next_step="remove it").prefixed("x.yaml")
    assert (error.what, error.code, error.allowed, error.next_step) == (
        "x.yaml: a=1",
        "unknown-setting",
        "b",
        "remove it",
    )
