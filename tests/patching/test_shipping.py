# SPDX-License-Identifier: Apache-2.0
"""A class that Ray ships by value takes the patch along, to a process where nothing is patched."""

from __future__ import annotations

import importlib
import subprocess
import sys
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
