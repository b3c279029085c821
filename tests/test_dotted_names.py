# SPDX-License-Identifier: Apache-2.0
"""Every name and path of this package that is written as text means something: code, configuration, docs.

Python finds a wrong import when it runs it. It finds nothing wrong with a module in a string, an environment variable,
an entry point, a docstring or a page, and only runs a lazy import when it gets there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fp16_patch.precision.setting_names import NAMES

ROOT = Path(__file__).parents[1]
FOLDERS = ("fp16_patch", "hydra_plugins", "recipes", "docs", "scripts", "benchmarks", "examples", "tests", ".ci")
SUFFIXES = {".py", ".yaml", ".yml", ".md", ".toml", ".sh", ""}
NOT_READ = {"CHANGELOG.md", Path(__file__).name}
"""A changelog names what was; this file names what is not."""

DOTTED = re.compile(r"(?<![\w.])fp16_patch((?:\.[A-Za-z_]\w*)+)(?::([A-Za-z_]\w*(?:\.\w+)*))?")
PATH = re.compile(r"(?<![\w./-])fp16_patch/[\w./-]*")
OTHER_PATH = re.compile(
    r"(?<![\w./-])(?:tests|scripts|benchmarks|examples|docs|hydra_plugins)/[\w./-]+\.(?:py|md|sh)\b"
)
FROM = re.compile(r"from\s+fp16_patch((?:\.\w+)*)\s+import\s+(\([^)]*\)|[^\n;'\"\\#`(]*)")

SETTINGS = {*NAMES, "fp16_patch.loss_scaling", "fp16_patch.NAME"}
"""Keys of the configuration; NAME stands for any of them."""
FORMATS = {f"fp16_patch.{name}" for name in ("loss_scaler", "overflow_report", "rollout_overflow", "settings")}
"""Names of file formats, ``fp16_patch.<name>/<number>``."""
ENTRY_POINT_GROUPS = {"fp16_patch.commands", "fp16_patch.patches"}
WRONG_ON_PURPOSE = {
    "fp16_patch.dtype",
    "fp16_patch.init_scale",
    "fp16_patch.los_scaling.init_scale",
    "fp16_patch.loss_scaling.init_scal",
    "fp16_patch.loss_scaling.scale",
    "fp16_patch.rolout_dtype",
    "fp16_patch.train",
    "fp16_patch.x",
}
"""Settings that tests, and only tests, misspell to see them refused."""
NOT_A_PATH = {"fp16_patch/lab/recipes/data", "fp16_patch/toy"}
"""Made when the wheel is built, see pyproject.toml; the toy task's ``data_source``."""


def texts() -> Iterator[tuple[str, str]]:
    """Yield (path, text) of each file that is read."""
    files = [file for file in ROOT.iterdir() if file.is_file()]
    files += [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    for file in sorted(files):
        if file.suffix in SUFFIXES and file.name not in NOT_READ and not file.name.startswith(".git"):
            yield str(file.relative_to(ROOT)), file.read_text()


def collect() -> Iterator[tuple[str, str]]:
    """Yield (name, where) of every name: ``fp16_patch.x.y``, ``fp16_patch.x:y`` or ``fp16_patch/x/y.py``."""
    for file, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            for match in [p for pattern in (DOTTED, PATH, OTHER_PATH) for p in pattern.finditer(line)]:
                after = line[match.end() : match.end() + 1]
                name = match.group().rstrip("/.-")
                is_format = after == "/" and DOTTED.fullmatch(name)
                yield f"{name}/" if is_format else name, f"{file}:{number}"
        for match in FROM.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            for name in re.findall(r"(\w+)(?:\s+as\s+\w+)?", match.group(2).strip("()")):
                yield f"fp16_patch{match.group(1)}:{name}", f"{file}:{number}"


def resolves(name: str) -> bool:
    """Whether ``name`` is a file, a module, something in a module, or a setting."""
    if name.endswith("/"):
        return name[:-1] in FORMATS
    if "/" in name:
        return (ROOT / name).exists() or name in NOT_A_PATH
    if name in SETTINGS | ENTRY_POINT_GROUPS:
        return True
    dotted, _, attribute = name.partition(":")
    parts = dotted.split(".")
    length = max((n for n in range(1, len(parts) + 1) if _source(tuple(parts[:n]))), default=0)
    module = tuple(parts[:length])
    wanted = [*parts[length:], *filter(None, attribute.split("."))]
    if not module or (attribute and length < len(parts)):
        return False
    if wanted and len(wanted) == 1 and _source((*module, wanted[0])):
        return True
    return not wanted or _defines(_source(module), wanted)


@cache
def _source(module: tuple[str, ...]) -> Path | None:
    path = ROOT.joinpath(*module)
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def _defines(file: Path | None, wanted: list[str]) -> bool:
    assert file is not None
    body: list[ast.stmt] = _parse(file).body
    for name in wanted:
        if name.startswith("__") and name.endswith("__"):
            return True
        binding = [statement for statement in _statements(body) if name in _bound(statement)]
        if not binding:
            return False
        if not isinstance(binding[-1], ast.ClassDef):
            return True  # what an object has in it is not read off the source
        body = binding[-1].body
    return True


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for block in ("body", "orelse", "handlers", "finalbody"):
                yield from _statements(getattr(statement, block, []))


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return set()


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str]]:
    return list(collect())


def test_every_name_means_something(found: list[tuple[str, str]]) -> None:
    wrong = [f"{where}: {name}" for name, where in found if not resolves(name)]
    misspelt = {f"{where}: {name}" for name, where in found if name in WRONG_ON_PURPOSE and where.startswith("tests/")}
    assert not set(wrong) - misspelt, "these are not there:\n" + "\n".join(wrong)


def test_names_were_found_everywhere(found: list[tuple[str, str]]) -> None:
    """A pattern or a folder that no longer fits would find nothing, and nothing wrong."""
    assert len(found) > 1500
    places = {where.partition("/")[0].partition(":")[0] for _, where in found}
    assert places >= {
        "README.md",
        "pyproject.toml",
        "fp16_patch",
        "hydra_plugins",
        "recipes",
        "docs",
        "scripts",
        "tests",
    }
    names = {name for name, _ in found}
    assert {name.rstrip("/") for name in names} >= {*FORMATS, *ENTRY_POINT_GROUPS, *WRONG_ON_PURPOSE, *NOT_A_PATH}, (
        "exempt for nothing"
    )
    assert sum(":" in name for name in names) > 300, "imports from a module"
    assert sum(name in NAMES for name in names) > 8, "settings"
    assert sum("/" in name.rstrip("/") for name in names) > 15, "paths"


@pytest.mark.parametrize(
    "name",
    [
        "fp16_patch.absent",
        "fp16_patch.errors.Absent",
        "fp16_patch.errors:Absent",
        "fp16_patch.errors.Fp16PatchError.absent",
        "fp16_patch.errors.absent:several",
        "fp16_patch.loss_scaling.init_scal",
        "fp16_patch/absent.py",
        "fp16_patch.absent/",
        "tests/absent.py",
    ],
)
def test_a_name_of_nothing_is_found_out(name: str) -> None:
    assert not resolves(name)


@pytest.mark.parametrize(
    "name",
    [
        "fp16_patch.errors",
        "fp16_patch.errors.Fp16PatchError.__init__",
        "fp16_patch.errors:combine_errors",
        "fp16_patch.precision.setting_names.NAMES",
        "fp16_patch.loss_scaling.init_scale",
        "fp16_patch/errors.py",
        "fp16_patch/",
    ],
)
def test_a_name_of_something_is_taken(name: str) -> None:
    assert resolves(name.rstrip("/"))
