# SPDX-License-Identifier: Apache-2.0
"""All or nothing, once, and back again."""

from __future__ import annotations

import functools
import importlib
import json
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from raising import raises_code

from fp16_patch.patching import LedgerEntry, Patch, apply, find_definitions, status, undo

if TYPE_CHECKING:
    from conftest import Library

Declare = Callable[..., Patch]
OPTIM = '''
    def step(grads):
        """Sum."""
        return sum(grads)
    def other(grads):
        return -1
    class Scaler:
        tag = "base"
        def update(self): return "update"
        @staticmethod
        def floor(scale): return scale
        @classmethod
        def build(cls): return cls.tag
        @property
        def scale(self): return self._scale
        @scale.setter
        def scale(self, value): self._scale = value
    class Sharded(Scaler):
        tag = "sharded"
'''


def doubling(original: Callable[..., Any]) -> Callable[..., Any]:
    def doubled(*args: Any, **kwargs: Any) -> Any:
        return 2 * original(*args, **kwargs)

    return doubled


@pytest.fixture
def optim(library: Library) -> Any:
    library.write(optim=OPTIM, loop="from acme.optim import step\ndef run(): return step([1, 2])\n")
    return importlib.import_module("acme.optim")


def snapshot(*owners: Any) -> list[dict[str, Any]]:
    return [dict(vars(owner)) for owner in owners]


def test_a_wrap_keeps_the_identity_of_what_it_wraps(optim: Any, declare: Declare) -> None:
    original = optim.step
    (entry,) = apply([declare("acme.optim:step", doubling, name="double", parameters=("grads",))])
    assert (entry.name, entry.outcome, entry.version, entry.process) == (
        "double",
        "applied",
        "1.0",
        "trainer rank",
    )
    assert optim.step([1, 2]) == 6
    assert (optim.step.__name__, optim.step.__doc__, optim.step.__module__) == ("step", "Sum.", "acme.optim")
    assert optim.step.__wrapped__ is original
    assert optim.step.__fp16_patch__ == "double"


def test_applying_again_is_a_no_op(optim: Any, declare: Declare) -> None:
    patch = declare("acme.optim:step", doubling)
    first = apply([patch])
    patched = optim.step
    assert apply([patch]) == first
    assert apply([patch])[0] is first[0]
    assert optim.step is patched
    assert optim.step([1]) == 2


@pytest.mark.parametrize("stacked", [False, True])
def test_applying_again_under_someone_elses_wrapper_is_a_no_op(optim: Any, declare: Declare, stacked: bool) -> None:
    patches = [declare("acme.optim:step", doubling, name=f"p{i}") for i in range(1 + stacked)]
    apply(patches)
    ours = optim.step
    optim.step = functools.wraps(ours)(lambda grads: ours(grads))
    apply(patches)
    assert optim.step([1]) == 2 ** len(patches)


@pytest.mark.parametrize("name", ["step", "Scaler.update", "Scaler.floor", "Scaler.build", "Scaler.scale"])
@pytest.mark.parametrize("kind", ["wrap", "replace"])
def test_every_kind_of_function_is_patched_and_put_back_raw(optim: Any, declare: Declare, name: str, kind: str) -> None:
    more = {"fingerprint": find_definitions(f"acme.optim:{name}")[0].fingerprint} if kind == "replace" else {}
    before = snapshot(optim, optim.Scaler)
    apply([declare(f"acme.optim:{name}", lambda _: lambda *_: "patched", **more)])
    scaler = optim.Scaler()
    scaler.scale = 4.0
    values: dict[str, Callable[[], Any]] = {
        "step": lambda: optim.step([1]),
        "Scaler.update": lambda: scaler.update(),
        "Scaler.floor": lambda: scaler.floor(1),
        "Scaler.build": lambda: optim.Scaler.build(),
        "Scaler.scale": lambda: scaler.scale,
    }
    assert [n for n, value in values.items() if value() == "patched"] == [name]
    assert undo() == []
    assert snapshot(optim, optim.Scaler) == before
    assert status().entries == ()


def test_a_classmethod_still_gets_its_class(optim: Any, declare: Declare) -> None:
    apply([declare("acme.optim:Scaler.build", doubling, parameters=("cls",))])
    assert optim.Sharded.build() == "shardedsharded"


def test_undo_of_an_inherited_method_leaves_no_entry_behind(optim: Any, declare: Declare) -> None:
    before = snapshot(optim.Scaler, optim.Sharded)
    apply([declare("acme.optim:Sharded.update", doubling)])
    assert (optim.Sharded().update(), optim.Scaler().update()) == ("updateupdate", "update")
    assert undo() == []
    assert snapshot(optim.Scaler, optim.Sharded) == before
    assert "update" not in vars(optim.Sharded)


def test_add_fills_a_gap_and_undo_leaves_the_gap(optim: Any, declare: Declare) -> None:
    patches = [
        declare("acme.optim:unscale", lambda _: lambda: "added", kind="add"),
        declare("acme.optim:Sharded.unscale", lambda _: lambda self: self.tag, kind="add"),
    ]
    assert [e.outcome for e in apply(patches)] == [e.outcome for e in apply(patches)] == ["applied"] * 2
    assert (optim.unscale(), optim.Sharded().unscale()) == ("added", "sharded")
    assert undo() == []
    assert not hasattr(optim, "unscale")
    assert not hasattr(optim.Sharded, "unscale")


def test_every_declared_binding_is_patched_and_put_back(optim: Any, declare: Declare) -> None:
    loop = importlib.import_module("acme.loop")
    before = snapshot(optim, loop)
    apply([declare("acme.optim:step", doubling, also_bound=("acme.loop:step",))])
    assert (optim.step([1, 2]), loop.run()) == (6, 6)
    assert loop.step is optim.step
    assert undo() == []
    assert snapshot(optim, loop) == before


LAZY = """
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from acme.optim import step
    def __getattr__(name):
        from acme import optim
        return getattr(optim, name)
"""


def test_a_binding_that_a_module_makes_on_demand(library: Library, optim: Any, declare: Declare) -> None:
    library.write(lazy=LAZY)
    lazy: Any = importlib.import_module("acme.lazy")
    before = snapshot(lazy)
    apply([declare("acme.optim:step", doubling, also_bound=("acme.lazy:step",))])
    assert lazy.step([1]) == optim.step([1]) == 2
    assert undo() == []
    assert snapshot(lazy) == before
    assert lazy.step([1]) == 1


def test_undo_reaches_modules_imported_while_the_patch_was_on(optim: Any, declare: Declare) -> None:
    original = optim.step
    apply([declare("acme.optim:step", doubling)])
    loop = importlib.import_module("acme.loop")
    assert loop.run() == 6
    assert undo() == []
    assert loop.step is original


def test_one_refusal_refuses_all_and_every_reason_is_told(optim: Any, declare: Declare) -> None:
    before = snapshot(optim, optim.Scaler)
    good, missing = declare("acme.optim:step", doubling), declare("acme.optim:gone", name="gone")
    old = declare("acme.optim:other", name="old", versions="<1")
    with raises_code("several-problems", "acme.optim:gone", "1.0", "<1") as raised:
        apply([good, missing, old])
    assert raised.value.codes == ("patch-refused", "patch-refused")
    assert snapshot(optim, optim.Scaler) == before
    assert [(e.name, e.outcome) for e in status().entries] == [("gone", "refused"), ("old", "refused")]


def test_what_is_not_installed_or_native_is_recorded_and_the_rest_applied(optim: Any, declare: Declare) -> None:
    patches = [
        declare("acme.optim:step", doubling),
        declare("acme.optim:other", native=lambda: True),
        declare("acme.optim:Scaler.update", distribution="acme-rl-cuda"),
    ]
    assert [entry.outcome for entry in apply(patches)] == ["applied", "native", "not_installed"]
    assert optim.step([1]) == 2


def _raise(*_: Any) -> Any:
    raise KeyError("half way")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"make": _raise}, "KeyError: 'half way'"),
        ({"make": lambda original: original}, "make must return a new plain function"),
        ({"make": lambda original: functools.partial(original)}, "make must return a new plain function"),
    ],
    ids=["make raises", "make returns the original", "make returns a partial"],
)
def test_a_failure_half_way_rolls_everything_back(
    optim: Any, declare: Declare, more: dict[str, Any], says: str
) -> None:
    before = snapshot(optim, optim.Scaler, optim.Sharded)
    first = declare("acme.optim:Sharded.update", doubling, name="first")
    over = declare("acme.optim:step", doubling, name="over")
    with raises_code("patch-refused", says, "patch bad", "acme.optim:step"):
        apply([first, over, declare("acme.optim:step", **{"make": doubling, "name": "bad", **more})])
    assert snapshot(optim, optim.Scaler, optim.Sharded) == before
    assert [(e.name, e.outcome) for e in status().entries] == [("bad", "refused")]
    apply([first, over])
    assert optim.step([1]) == 2


def test_an_interrupt_half_way_rolls_back_and_goes_on_up(optim: Any, declare: Declare) -> None:
    def interrupt(_original: Any) -> Any:
        raise KeyboardInterrupt

    before = snapshot(optim)
    with pytest.raises(KeyboardInterrupt):
        apply([declare("acme.optim:other", doubling), declare("acme.optim:step", interrupt)])
    assert snapshot(optim) == before


def test_what_someone_wrapped_after_us_stays_and_is_reported(optim: Any, declare: Declare) -> None:
    apply([declare("acme.optim:step", doubling, name="ours"), declare("acme.optim:other", doubling)])
    ours = optim.step
    optim.step = theirs = functools.wraps(ours)(lambda grads: ours(grads))
    (left,) = undo()
    assert (left.name, left.outcome, left.message) == (
        "ours",
        "applied",
        "not undone, set since: acme.optim:step",
    )
    assert optim.step is theirs
    assert (optim.step([1]), optim.other([1])) == (2, -1)
    assert [entry.name for entry in status().entries] == ["ours"]
    optim.step = ours  # they undo theirs, then we can undo ours
    assert undo() == []
    assert optim.step([1]) == 1


def test_patches_stack_and_are_undone_in_reverse(optim: Any, declare: Declare) -> None:
    lower = declare("acme.optim:step", lambda f: lambda g: f(g) + 1, name="lower")
    upper = declare("acme.optim:step", doubling, name="upper")
    before = snapshot(optim)
    apply([lower, upper])
    assert optim.step([1]) == 4
    assert [entry.name for entry in undo([lower])] == ["lower"]  # the upper one sits on it
    assert undo([upper]) == []
    assert optim.step([1]) == 2
    apply([lower, upper])
    assert optim.step([1]) == 4
    assert undo() == []
    assert snapshot(optim) == before


def test_a_reloaded_module_is_patched_afresh(optim: Any, declare: Declare) -> None:
    patch = declare("acme.optim:step", doubling)
    apply([patch])
    importlib.reload(optim)
    assert optim.step([1]) == 1
    apply([patch])
    assert optim.step([1]) == 2
    assert undo() == []
    assert optim.step([1]) == 1


def test_threads_that_apply_the_same_patch_wrap_once(optim: Any, declare: Declare) -> None:
    def slowly(original: Callable[..., Any]) -> Callable[..., Any]:
        time.sleep(0.02)
        return doubling(original)

    patch = declare("acme.optim:step", slowly)
    threads = [threading.Thread(target=apply, args=([patch],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert optim.step([1]) == 2
    assert undo() == []
    assert optim.step([1]) == 1


def test_the_ledger_survives_json(optim: Any, declare: Declare) -> None:
    apply([declare("acme.optim:step"), declare("acme.optim:other", native=lambda: True)])
    ledger = status()
    assert (ledger.pid, bool(ledger.host), optim.__name__) == (os.getpid(), True, "acme.optim")
    assert json.loads(json.dumps(ledger.as_dict())) == ledger.as_dict()
    assert [LedgerEntry(**entry) for entry in ledger.as_dict()["entries"]] == list(ledger.entries)


def test_a_forked_child_reports_its_own_pid(optim: Any, declare: Declare) -> None:
    apply([declare("acme.optim:step", doubling)])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps([status().as_dict(), optim.step([1])]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    ledger, value = json.loads(os.read(read, 65536))
    assert (ledger["pid"], ledger["entries"][0]["outcome"], value) == (child, "applied", 2)
