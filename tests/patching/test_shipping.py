# SPDX-License-Identifier: Apache-2.0
"""A class that Ray ships by value takes the patch along, to a process where nothing is patched."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fp16_patch.patching import Patch, apply, undo

if TYPE_CHECKING:
    from conftest import Library

cloudpickle = pytest.importorskip("cloudpickle")

ACTOR = """
    class Base:
        def inherited(self, x): return x
    class Actor(Base):
        def step(self, x): return x
        @staticmethod
        def floor(x): return x
        @classmethod
        def build(cls): return cls()
        @property
        def scale(self): return 1
"""
READ = """
import pickle, sys
Actor = pickle.load(open(sys.argv[1], "rb"))
actor = Actor.build()
print(actor.step(1), actor.floor(1), actor.scale, actor.inherited(1), Actor.step.__fp16_patch__)
assert "fp16_patch" not in sys.modules, "the shipped functions drag our package along"
"""


def test_a_patched_class_shipped_by_value_is_still_patched(
    library: Library, declare: Callable[..., Patch], tmp_path: Path
) -> None:
    library.write(actor=ACTOR)
    module = importlib.import_module("acme.actor")

    def adding(original: Callable[..., int]) -> Callable[..., int]:
        return lambda *args: original(*args) + 10

    names = ["step", "floor", "scale", "inherited"]
    apply([declare(f"acme.actor:Actor.{name}", adding, name=name) for name in names])
    cloudpickle.register_pickle_by_value(module)
    try:
        shipped = tmp_path / "actor.pkl"
        shipped.write_bytes(cloudpickle.dumps(module.Actor))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    fresh = subprocess.run(
        [sys.executable, "-c", READ, str(shipped)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert fresh.stdout.split() == ["11", "11", "11", "11", "step"], fresh.stderr


HANDLERS = """
    def closure(original):
        def step(self, x): return original(self, x) + 10
        return step

    from fp16_patch.patching import ProcessKind, Release, wrap

    WHAT = dict(
        release=Release("acme-rl", "==1.0"), processes={ProcessKind.ANY}, reason="r", upstream="u", remove_when="never"
    )

    @wrap("acme.actor:Actor.step", **WHAT)
    def declared(original, self, x): return original(self, x) + 10

    @wrap("acme.actor:Actor.floor", name="second", **WHAT)
    @wrap("acme.actor:Actor.step", name="first", **WHAT)
    def stacked(original, self, x): return original(self, x) + 10

    def ten(): return 10

    def by_name(original):
        def step(self, x): return original(self, x) + ten()
        return step

    def handler(original, self, x): return original(self, x) + 10

    def over_a_handler(original):
        def step(self, x): return handler(original, self, x)
        return step

    def step(self, x): return 11

    def itself(original): return step
"""
READ_STEP = """
import importlib.util, pickle, sys
assert importlib.util.find_spec("user") is None, "this process was to have none of it"
Actor = pickle.load(open(sys.argv[1], "rb"))
print(Actor().step(1), Actor.step.__fp16_patch__, "fp16_patch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("make", "why_not"),
    [
        pytest.param("closure", None, id="a closure of a maker"),
        pytest.param("declared", None, id="a declared handler"),
        pytest.param("stacked", None, id="a handler declared for two targets"),
        pytest.param("itself", None, id="a function of a module, which apply renames to upstream's"),
        pytest.param("by_name", "user", id="a closure that uses a function of its module"),
        pytest.param("over_a_handler", "user", id="a closure over a handler that keeps its name"),
    ],
)
def test_what_of_a_handlers_module_is_shipped_by_value(
    library: Library,
    declare: Callable[..., Patch],
    tmp_path: Path,
    make: str,
    why_not: str | None,
) -> None:
    """The receiver lacks the package of the handlers. Functions that are found by their name go by reference."""
    library.write(actor=ACTOR)
    package = tmp_path / "user"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "handlers.py").write_text(textwrap.dedent(HANDLERS))
    importlib.invalidate_caches()
    ours = importlib.import_module("user.handlers")
    module = importlib.import_module("acme.actor")
    maker = getattr(ours, make)
    apply([declare("acme.actor:Actor.step", maker.make if isinstance(maker, Patch) else maker, name="step")])
    assert module.Actor().step(1) == 11
    cloudpickle.register_pickle_by_value(module)
    try:
        shipped = tmp_path / "actor.pkl"
        shipped.write_bytes(cloudpickle.dumps(module.Actor))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    fresh = subprocess.run(
        [sys.executable, "-c", READ_STEP, str(shipped)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if why_not is None:
        assert fresh.stdout.split() == ["11", "step", "False"], fresh.stderr
    else:
        assert fresh.returncode != 0, fresh.stdout
        assert f"No module named '{why_not}'" in fresh.stderr


REMOTE = """
    import ray
    class Base:
        def inherited(self, x): return x
    @ray.remote
    class Actor(Base):
        def step(self, x): return x
"""


def test_the_class_behind_a_ray_actor_is_what_is_patched(library: Library, declare: Callable[..., Patch]) -> None:
    pytest.importorskip("ray")
    library.write(remote=REMOTE)
    module = importlib.import_module("acme.remote")

    def adding(original: Callable[..., int]) -> Callable[..., int]:
        return lambda self, x: original(self, x) + 10

    patches = [declare(f"acme.remote:Actor.{name}", adding, name=name) for name in ("step", "inherited")]
    apply(patches)
    shipped = module.Actor.__ray_metadata__.modified_class
    # Ray has copied inherited methods into it: the base class would be the wrong place.
    assert (shipped.step(None, 1), shipped.inherited(None, 1)) == (11, 11)
    assert module.Base().inherited(1) == 1
    assert undo(patches) == []
    assert (shipped.step(None, 1), shipped.inherited(None, 1)) == (1, 1)
