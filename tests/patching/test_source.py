# SPDX-License-Identifier: Apache-2.0
"""The reader of files finds what Python would, imports nothing, and agrees with the live objects."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp16_patch.patching import Patch, check_source, find_definitions
from fp16_patch.patching.binding import Binding, function_of, layers
from fp16_patch.patching.source import exists, text_of

if TYPE_CHECKING:
    from conftest import Library

TRICKY = '''
    import functools
    from typing import TYPE_CHECKING, overload
    from .base import Base as Parent
    from . import base, extra
    from .extra import *
    import acme.base as other

    def deco(*_):
        def wrap(f):
            @functools.wraps(f)
            def inner(*a, **k):
                return f(*a, **k)
            return inner
        return wrap

    if TYPE_CHECKING:
        from .base import hidden
    else:
        def hidden(a): return a

    try:
        import _no_such_thing_
    except ImportError:
        async def fallback(a, *, b=1):
            """doc
    with a line at column 0
            """
            return a  # trailing

    @deco("a",
          "b")
    @deco()
    def decorated(x, /, y, *rest, z, **more):
        # form\x0cfeed
        return x

        # not part of it

    @overload
    def over(a: int) -> int: ...
    @overload
    def over(a: str) -> str: ...
    def over(a):
        return a

    class Child(Parent):
        def own(self, a): return a

        def nested(self):
            def inner(self): return 1
            return inner

        @property
        def scale(self): return 1
        @scale.setter
        def scale(self, value): pass

        @staticmethod
        def static(a): return a

        @classmethod
        @deco()
        def klass(cls, a): return a

        alias = own
        over = over
        rebound = base.Base.inherited

        class Inner:
            def deep(self): return 1

    class Grandchild(Child): pass
    class Dotted(base.Base): pass
    class Generic_(other.Base): pass
    again = over
'''
BASE = """
    class Base:
        def inherited(self, a):
            return a
    def hidden(b): return b
"""
NAMES = [
    "hidden", "fallback", "decorated", "over", "again", "starred", "Child.own", "Child.nested", "Child.scale",
    "Child.static", "Child.klass", "Child.alias", "Child.over", "Child.rebound", "Child.Inner.deep",
    "Child.inherited", "Grandchild.inherited", "Grandchild.own", "Dotted.inherited", "Generic_.inherited",
    "base.hidden", "extra.starred", "other.Base.inherited",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_files_and_live_objects_have_the_same_text_and_parameters(library: Library, name: str) -> None:
    library.write(tricky=TRICKY, base=BASE, extra="def starred(a):\n    return a\n")
    candidates = find_definitions(f"acme.tricky:{name}")
    binding = Binding.at(f"acme.tricky:{name}")
    live = layers(function_of(binding.raw))[-1]
    assert text_of(live) in [candidate.text for candidate in candidates], f"{name}: look at source._members"
    code = live.__code__
    counted = (
        code.co_varnames[: code.co_argcount],
        code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount],
    )
    assert counted in [(candidate.positional, candidate.keyword_only) for candidate in candidates]


def test_text_is_dedented_starts_at_the_decorator_and_ends_with_the_body(library: Library) -> None:
    library.write(tricky=TRICKY, base=BASE)
    (decorated,) = find_definitions("acme.tricky:decorated")
    assert decorated.text.startswith('@deco("a",\n      "b")\n@deco()\ndef decorated(')
    assert decorated.text.endswith("return x")
    assert decorated.decorators == 2
    assert len(decorated.fingerprint) == 16


def test_the_last_definition_of_a_block_counts(library: Library) -> None:
    library.write(tricky=TRICKY, base=BASE)
    assert [definition.text for definition in find_definitions("acme.tricky:over")] == ["def over(a):\n    return a"]


@pytest.mark.parametrize("name", ["missing", "Child.missing", "missing.own", "Child.Inner.missing", "deco.inner"])
def test_what_is_not_there_is_not_found(library: Library, name: str) -> None:
    library.write(tricky=TRICKY, base=BASE)
    assert not exists(f"acme.tricky:{name}")
    assert find_definitions(f"acme.tricky:{name}") == []


@pytest.mark.parametrize("target", ["acme.none:f", "nowhere_at_all:f", "sys:exit", "acme.circle:f"])
def test_modules_without_an_answer_have_none(library: Library, target: str) -> None:
    library.write(circle="from .back import f", back="from .circle import f")
    assert find_definitions(target) == []


def test_folders_without_init_are_packages_too(library: Library) -> None:
    library.write(name__space__mod="def f(a): return a")
    (definition,) = find_definitions("acme.name.space.mod:f")
    assert definition.positional == ("a",)


def test_an_editable_install_is_found_by_its_own_finder(
    library: Library, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path_factory.mktemp("checkout") / "fancy.py"
    hidden.write_text("def f(a): return a\n")

    class Editable:  # as setuptools writes it for `pip install -e`
        @staticmethod
        def find_spec(name: str, *_: Any) -> Any:
            return importlib.util.spec_from_file_location(name, hidden) if name == "fancy" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    assert [d.positional for d in find_definitions("fancy:f")] == [("a",)]
    assert library.root.is_dir()


def test_checking_the_source_imports_nothing(library: Library, declare: Callable[..., Patch]) -> None:
    library.write(__init__="import acme.trap", trap="raise SystemExit('imported')", sub__mod="def f(a): return a")
    declared = declare("acme.sub.mod:f", parameters=("a",))
    assert check_source(declared).outcome == "applied"  # once, for the standard library's own lazy imports
    before = dict(sys.modules)
    assert check_source(declared).outcome == "applied"
    assert sys.modules == before
    assert not any(name.split(".")[0] == "acme" for name in sys.modules)


_NAME = st.sampled_from(["a", "b", "self", "config", "scale"])
_LINE = st.sampled_from(
    [
        "x = 1",
        "# comment",
        "",
        "return 0",
        'text = """\nflush left\n"""',
        "def inner():\n    return 1",
        "pass; pass",
        "pass  # form\x0cfeed",
    ]
)


@st.composite
def modules(draw: st.DrawFn) -> tuple[str, str]:
    """Source of a module with a function somewhere in it, and the function's qualified name."""
    parameters = draw(st.lists(_NAME, unique=True, max_size=4))
    if draw(st.booleans()) and parameters:
        parameters.insert(draw(st.integers(0, len(parameters) - 1)), "*")
    body = "\n".join([*draw(st.lists(_LINE, max_size=4)), "pass"])
    indented = "\n".join(line if "flush" in line or line == '"""' else "    " + line for line in body.split("\n"))
    decorators = "@same\n" * draw(st.integers(0, 2))
    prefix = draw(st.sampled_from(["def", "async def"]))
    text, name = f"{decorators}{prefix} f({', '.join(parameters)}):\n{indented}\n# after\n", "f"
    for block, scope in draw(st.lists(st.sampled_from([("if True:", ""), ("class C:", "C.")]), max_size=2)):
        lines = [line if "flush" in line or line == '"""' else "    " + line for line in text.split("\n")]
        text = "\n".join([block, *lines])
        name = scope + name
    return f"same = lambda f: f\n{text}\nlast = 1\n", name


@settings(deadline=None, database=None, derandomize=True)
@given(modules())
def test_any_function_reads_the_same_from_the_file_and_from_the_object(
    tmp_path_factory: pytest.TempPathFactory, module: tuple[str, str]
) -> None:
    source, name = module
    path: Path = tmp_path_factory.mktemp("generated") / "generated.py"
    path.write_text(source)
    sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()
    try:
        (definition,) = find_definitions(f"generated:{name}")
        live = Binding.at(f"generated:{name}").raw
        assert isinstance(live, FunctionType)
        assert text_of(live) == definition.text, source
    finally:
        sys.path.remove(str(path.parent))
        sys.modules.pop("generated", None)
