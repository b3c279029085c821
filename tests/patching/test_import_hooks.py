# SPDX-License-Identifier: Apache-2.0
"""The callback comes right after the import, once, whoever imports and however."""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from raising import raises_code

from fp16_patch.patching import Patch, apply, import_hooks, when_imported

if TYPE_CHECKING:
    from conftest import Library


@pytest.fixture(autouse=True)
def finders() -> Iterator[list[Any]]:
    """Every test must leave the finders as they were, unless it says why not."""
    before = list(sys.meta_path)
    yield before
    left, import_hooks._waiting = import_hooks._waiting, {}
    after, sys.meta_path = sys.meta_path, before
    assert (left, after) == ({}, before), "a callback is still waiting, or the finder has not removed itself"


def test_callbacks_run_in_order_once_the_module_is_complete(library: Library) -> None:
    library.write(late="value = 1\n")
    seen: list[Any] = []
    when_imported("acme.late", lambda module: seen.append(("first", module.value)))
    when_imported("acme.late", lambda module: seen.append(("second", module.value)))
    importlib.import_module("acme")
    assert seen == []
    module: Any = importlib.import_module("acme.late")
    assert seen == [("first", 1), ("second", 1)]
    assert type(module.__loader__) is type(module.__spec__.loader) is type(importlib.import_module("acme").__loader__)


def test_an_imported_module_calls_back_at_once(library: Library) -> None:
    library.write(late="")
    module = importlib.import_module("acme.late")
    seen: list[ModuleType] = []
    when_imported("acme.late", seen.append)
    assert seen == [module]


def test_an_error_goes_to_the_importer_and_the_next_attempt_runs_everything_again(library: Library) -> None:
    library.write(late="")
    seen: list[str] = []

    def fail_once(_: ModuleType) -> None:
        seen.append("second")
        if len(seen) == 2:
            raise OSError("refused")

    when_imported("acme.late", lambda _: seen.append("first"))
    when_imported("acme.late", fail_once)
    with pytest.raises(OSError, match="refused"):
        importlib.import_module("acme.late")
    assert "acme.late" not in sys.modules
    importlib.import_module("acme.late")
    assert seen == ["first", "second", "first", "second"]


def test_an_error_of_an_imported_module_goes_to_the_caller(library: Library) -> None:
    library.write(late="")
    importlib.import_module("acme.late")
    with pytest.raises(ZeroDivisionError):
        when_imported("acme.late", lambda _: 1 / 0)


def test_a_module_that_fails_to_import_keeps_its_callbacks_waiting(library: Library) -> None:
    library.write(late="raise OSError('broken')\n")
    seen: list[ModuleType] = []
    when_imported("acme.late", seen.append)
    with pytest.raises(OSError, match="broken"):
        importlib.import_module("acme.late")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("acme.later")
    assert seen == []
    library.write(late="value = 2  # mended\n")
    importlib.import_module("acme.late")
    assert [module.value for module in seen] == [2]


def test_a_callback_may_ask_for_more(library: Library) -> None:
    library.write(late="", later="")
    seen: list[str] = []

    def ask(_: ModuleType) -> None:
        when_imported("acme.late", lambda _: seen.append("late"))
        when_imported("acme.later", lambda _: seen.append("later"))
        importlib.import_module("acme.later")

    when_imported("acme.late", ask)
    importlib.import_module("acme.late")
    assert seen == ["later", "late"]


def test_inside_the_modules_own_import_it_is_too_late(library: Library) -> None:
    library.write(late="from fp16_patch.patching import when_imported\nwhen_imported(__name__, print)\n")
    with raises_code("imported-too-early", "acme.late"):
        importlib.import_module("acme.late")


def test_the_target_is_patched_before_its_importer_goes_on(library: Library, declare: Callable[..., Patch]) -> None:
    """The usual use. acme.loop is half imported when the patch is applied and has not bound the name yet."""
    library.write(
        optim="def step(x): return x\n",
        loop="from acme.optim import step\nclass Loop:\n    step = step\nresult = step(1) + Loop.step(1)\n",
    )
    patch = declare(
        "acme.optim:step",
        lambda f: lambda x: f(x) + 10,
        parameters=("x",),
        also_bound=("acme.loop:step", "acme.loop:Loop.step"),
    )
    when_imported("acme.optim", lambda _: apply([patch]))
    assert importlib.import_module("acme.loop").result == 22


def test_a_module_that_puts_something_else_in_its_place(library: Library) -> None:
    library.write(late="import sys, types\nsys.modules[__name__] = types.SimpleNamespace(value=3)\n")
    seen: list[Any] = []
    when_imported("acme.late", seen.append)
    importlib.import_module("acme.late")
    assert seen[0].value == 3


def test_reload_works_and_does_not_call_again(library: Library) -> None:
    library.write(late="", other="")
    seen: list[ModuleType] = []
    when_imported("acme.late", seen.append)
    module = importlib.import_module("acme.late")
    when_imported("acme.other", seen.append)  # the finder is there during the reload
    importlib.reload(module)
    assert seen == [module]
    importlib.import_module("acme.other")


def lazily(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("asked", ["before", "after"])
def test_a_lazy_module_calls_back_when_it_really_loads(library: Library, asked: str) -> None:
    library.write(__init__="loaded = []", late="import acme\nacme.loaded.append(1)\nvalue = 1\n")
    acme = importlib.import_module("acme")
    seen: list[int] = []
    if asked == "before":
        when_imported("acme.late", lambda module: seen.append(module.value))
    module = lazily("acme.late")
    if asked == "after":
        when_imported("acme.late", lambda module: seen.append(module.value))
    assert acme.loaded == seen == []
    assert module.value == 1
    assert acme.loaded == seen == [1]


def test_looking_for_the_module_changes_nothing(library: Library) -> None:
    library.write(late="value = 1\n")
    (library.root / "acme" / "data.txt").write_text("data")
    seen: list[ModuleType] = []
    when_imported("acme", seen.append)
    spec = importlib.util.find_spec("acme")
    assert spec is not None
    assert seen == []
    assert spec.origin == str(library.root / "acme" / "__init__.py")
    acme = importlib.import_module("acme")
    assert importlib.resources.files(acme).joinpath("data.txt").read_text() == "data"
    assert inspect.getsource(importlib.import_module("acme.late")) == "value = 1\n"


def test_python_m_runs_the_module_and_calls_nobody(library: Library) -> None:
    library.write(main="print(__name__)\n", helper="")
    code = (
        "import runpy; from fp16_patch.patching import when_imported;"
        "when_imported('acme.main', lambda _: print('called'));"
        "when_imported('acme', lambda m: print('package', m.__name__));"
        "runpy.run_module('acme.main', run_name='__main__', alter_sys=True)"
    )
    root = Path(importlib.import_module("fp16_patch").__path__[0]).parent
    environment = {**os.environ, "PYTHONPATH": f"{root}:{library.root}"}
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert out.stdout.split() == ["package", "acme", "__main__"], out.stderr


def test_another_tools_finder_that_asks_all_finders(library: Library) -> None:
    class Nosy:
        busy = False

        def find_spec(self, name: str, *_: Any) -> Any:
            if self.busy or not name.startswith("acme"):
                return None
            self.busy = True
            try:
                return importlib.util.find_spec(name)
            finally:
                self.busy = False

    library.write(late="")
    seen: list[str] = []
    nosy = Nosy()
    sys.meta_path.insert(0, nosy)
    try:
        when_imported("acme.late", lambda m: seen.append(m.__name__))
        importlib.import_module("acme.late")
    finally:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not nosy]
    assert seen == ["acme.late"]


def test_an_import_already_running_in_another_thread_is_waited_for(library: Library) -> None:
    library.write(
        __init__="import threading\nstarted, go = threading.Event(), threading.Event()\n",
        late="import acme\nacme.started.set()\nacme.go.wait(30)\nvalue = 1\n",
    )
    acme = importlib.import_module("acme")
    importing = threading.Thread(target=importlib.import_module, args=("acme.late",))
    importing.start()
    assert acme.started.wait(30)
    threading.Timer(0.2, acme.go.set).start()
    seen: list[int] = []
    when_imported("acme.late", lambda module: seen.append(module.value))
    importing.join(30)
    assert seen == [1]


def test_many_threads_register_and_import_and_each_callback_runs_once(library: Library) -> None:
    names = [f"m{i}" for i in range(20)]
    library.write(**dict.fromkeys(names, "import time\ntime.sleep(0.001)\nvalue = 1\n"))
    seen: list[tuple[str, int, int]] = []
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for name in names if worker % 2 else reversed(names):
                when_imported(f"acme.{name}", lambda m, n=name: seen.append((n, worker, m.value)))  # type: ignore[misc]
                importlib.import_module(f"acme.{name}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert sorted(seen) == sorted((name, worker, 1) for name in names for worker in range(8))


def test_what_cannot_be_watched_says_so(library: Library) -> None:
    library.write()
    (library.root / "acme" / "space").mkdir()
    when_imported("acme.space", print)
    with pytest.raises(ImportError, match="cannot watch"):
        importlib.import_module("acme.space")
    import_hooks._waiting.clear()
    sys.meta_path.remove(import_hooks._finder)
