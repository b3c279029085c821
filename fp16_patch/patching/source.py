# SPDX-License-Identifier: Apache-2.0
"""Find a function in the files on disk, and read its text, without importing anything.

Names are followed as Python would: through ``if`` and ``try`` blocks, imports, aliases and base classes. A name
defined in several branches has several candidates: only running the module tells which one counts.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import resolve_name
from types import FunctionType
from typing import Any

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPE = (*_FUNCTION, ast.ClassDef)
_BRANCHES = ("body", "orelse", "handlers", "finalbody", "cases")


@dataclass(frozen=True)
class Definition:
    """One ``def`` in a source file. ``text`` starts at its first decorator and is dedented."""

    module: str
    line: int
    text: str
    positional: tuple[str, ...]
    keyword_only: tuple[str, ...]
    decorators: int

    @property
    def fingerprint(self) -> str:
        """Return what a patch pins: the first 16 hexadecimal digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Place:
    """A module, or a statement in one."""

    module: str
    package: str
    source: str
    node: ast.AST


_Trail = frozenset[tuple[str, ...]]


def find_definitions(target: str) -> list[Definition]:
    """Return every ``def`` that ``package.module:Qual.name`` may stand for; none if there is no such function."""
    return [_definition(p, p.node) for p in _lookup(*_parts(target)) if isinstance(p.node, _FUNCTION)]


def exists(target: str) -> bool:
    """Return whether ``package.module:Qual.name``, or ``package.module``, is bound to anything."""
    return bool(_lookup(*_parts(target)))


def text_of(function: FunctionType) -> str | None:
    """Return the text of a live function, like ``Definition.text``; None if its file cannot be read."""
    code = function.__code__
    source = "".join(linecache.getlines(code.co_filename, function.__globals__))
    for node in ast.walk(_parse(source)):
        if isinstance(node, _FUNCTION) and (_line(node), node.name) == (code.co_firstlineno, code.co_name):
            return _text(source, node)
    return None


def _parts(target: str) -> list[str]:
    module, _, qualname = target.partition(":")
    return [module, *qualname.split(".")] if qualname else [module]


def _lookup(module: str, *names: str, trail: _Trail = frozenset()) -> list[_Place]:
    step = (module, *names)
    if step in trail or (place := _read(module)) is None:  # modules may import from each other in a circle
        return []
    return _descend(place, names, trail | {step})


def _descend(place: _Place, names: Iterable[str], trail: _Trail) -> list[_Place]:
    places = [place]
    for name in names:
        places = [member for outer in places for member in _members(outer, name, trail)]
    return places


def _members(place: _Place, name: str, trail: _Trail) -> list[_Place]:
    """Return what ``name`` may stand for inside a module or a class."""
    node, found = place.node, []
    if isinstance(node, (ast.Module, ast.ClassDef)):
        found = [p for stmt in _binding(node.body, name) for p in _follow(place, stmt, name, trail)]
    if isinstance(node, ast.ClassDef):
        for path in filter(None, map(_dotted, node.bases)):
            found = found or _lookup(place.module, *path, name, trail=trail)
    if isinstance(node, ast.Module) and not found:
        stars = [s for s in node.body if isinstance(s, ast.ImportFrom) and s.names[0].name == "*"]
        found = [p for star in stars for p in _lookup(_origin(place, star), name, trail=trail)]
    if isinstance(node, ast.Module) and place.module == place.package:
        found = found or _lookup(f"{place.module}.{name}", trail=trail)
    return found


def _follow(place: _Place, statement: ast.stmt, name: str, trail: _Trail) -> list[_Place]:
    """Follow an import or an alias; return the statement itself if it is a definition or leads nowhere."""
    found = []
    if isinstance(statement, ast.ImportFrom):
        imported = next(alias.name for alias in statement.names if _bound(alias) == name)
        found = _lookup(_origin(place, statement), imported, trail=trail)
    elif isinstance(statement, ast.Import):
        alias = next(alias for alias in statement.names if _bound(alias) == name)
        found = _lookup(alias.name if alias.asname else name, trail=trail)
    elif isinstance(statement, ast.Assign) and (path := _dotted(statement.value)):
        in_class = isinstance(place.node, ast.ClassDef) and path[0] != name  # `f = f` in a class: the global f
        found = (in_class and _descend(place, path, trail)) or _lookup(place.module, *path, trail=trail)
    return found or [replace(place, node=statement)]


def _binding(block: Iterable[ast.AST], name: str) -> list[ast.stmt]:
    """Return the statements that may bind ``name``: the last of a block counts, each branch may be the one taken."""
    found: list[ast.stmt] = []
    for statement in block:
        if isinstance(statement, ast.stmt) and _binds(statement, name):
            found = [statement]
        elif not isinstance(statement, _SCOPE):
            for branch in _BRANCHES:
                found += _binding(getattr(statement, branch, ()), name)
    return found


def _binds(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, _SCOPE):
        # `@x.setter def x` extends the property that the first `def x` made: the first is the getter.
        goes_on = any(_dotted(d)[:-1] == (name,) for d in statement.decorator_list)
        return statement.name == name and not goes_on
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return any(_bound(alias) == name for alias in statement.names)
    return isinstance(statement, ast.Assign) and any(_dotted(t) == (name,) for t in statement.targets)


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _dotted(node: ast.expr) -> tuple[str, ...]:
    """Return the names of ``a.b.c`` or ``a.b.c[...]``; empty for any other expression."""
    if isinstance(node, ast.Subscript):
        return _dotted(node.value)
    if isinstance(node, ast.Attribute):
        return (*path, node.attr) if (path := _dotted(node.value)) else ()
    return (node.id,) if isinstance(node, ast.Name) else ()


def _origin(place: _Place, statement: ast.ImportFrom) -> str:
    return resolve_name("." * statement.level + (statement.module or ""), place.package)


def _definition(place: _Place, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Definition:
    positional = tuple(a.arg for a in (*node.args.posonlyargs, *node.args.args))
    keyword_only = tuple(a.arg for a in node.args.kwonlyargs)
    text = _text(place.source, node)
    return Definition(place.module, _line(node), text, positional, keyword_only, len(node.decorator_list))


def _line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _text(source: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    # Not str.splitlines: it also splits at form feeds, which the line numbers of the ast do not count.
    lines = source.split("\n")[_line(node) - 1 : node.end_lineno]
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return "\n".join(line.removeprefix(indent) for line in lines)


@lru_cache(maxsize=16)
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _read(module: str) -> _Place | None:
    """Read a module from disk. ``importlib.util.find_spec`` would import its parents."""
    import pkgutil  # slow to import, and declaring a patch does not need it

    top, *rest = module.split(".")
    # Every finder and not only PathFinder, because an editable install may bring its own.
    specs: list[Any] = [f.find_spec(top, None) for f in sys.meta_path if hasattr(f, "find_spec")]
    name = top
    for part in rest:
        name = f"{name}.{part}"
        folders = [folder for s in specs if s for folder in s.submodule_search_locations or ()]
        importers: list[Any] = [pkgutil.get_importer(folder) for folder in folders]
        specs = [importer.find_spec(name) for importer in importers if importer]
    specs = [spec for spec in specs if spec]
    if not specs:
        return None
    spec = next((spec for spec in specs if spec.loader), specs[0])  # a namespace package has no loader
    source = getattr(spec.loader, "get_source", lambda _: None)(module) or ""
    package = module.rpartition(".")[0] if spec.submodule_search_locations is None else module
    return _Place(module, package, source, _parse(source))
