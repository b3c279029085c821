# SPDX-License-Identifier: Apache-2.0
"""What fits and what is refused: the file check and the live check must say the same, and say why."""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from raising import check_error

from fp16_patch.patching import Patch, PatchStatus, check_live, check_source, find_definitions, refusal

if TYPE_CHECKING:
    from conftest import Library

Declare = Callable[..., Patch]
OPTIM = """
    import functools
    LIMIT = 3
    def deco(f):
        return functools.wraps(f)(lambda *args: f(*args))
    @deco
    @deco
    def decorated(grads):
        return 0
    def step(grads, scale, *, clip=1.0):
        return sum(grads) / scale
    class Scaler:
        def update(self, found_inf):
            return found_inf
        @staticmethod
        def floor(scale):
            return scale
    class Sharded(Scaler):
        pass
"""


def both(patch: Patch) -> PatchStatus:
    """The finding, after checking that the file check and the live check agree."""
    from_file, live = check_source(patch), check_live(patch)
    assert (from_file.outcome, from_file.version) == (live.outcome, live.version)
    assert from_file.message in live.message
    return live


@pytest.mark.parametrize("name", ["step", "Scaler.update", "Scaler.floor", "Sharded.update", "decorated"])
def test_a_function_as_it_was_read_fits(library: Library, declare: Declare, name: str) -> None:
    library.write("1.0+cpu", optim=OPTIM)
    (definition,) = find_definitions(f"acme.optim:{name}")
    patch = declare(f"acme.optim:{name}", fingerprint=("0" * 16, definition.fingerprint))
    assert both(patch) == PatchStatus(patch, "applied", "1.0+cpu", "")


@pytest.mark.parametrize(
    ("version", "target", "more", "says"),
    [
        ("2.0", "step", {}, "version 2.0 is not in ==1.0"),
        ("nightly", "step", {}, "version nightly is not in ==1.0"),
        ("1.0", "stepp", {}, "it is not there"),
        ("1.0", "Scaler.unscale", {}, "it is not there"),
        ("1.0", "LIMIT", {}, "it is not a function in the source"),
        ("1.0", "Scaler", {}, "it is not a function in the source"),
        ("1.0", "step", {"fingerprint": "0" * 16}, "its source has changed: fingerprint "),
        ("1.0", "step", {"parameters": ("scale",)}, r"(grads, scale, *, clip), the patch relies on (scale)"),
        ("1.0", "step", {"parameters": ("scale", "grads")}, "its signature has changed"),
        ("1.0", "step", {"parameters": ("grads", "loss_scale")}, "its signature has changed"),
        (
            "1.0",
            "Scaler.update",
            {"parameters": ("found_inf",)},
            "its signature has changed: (self, found_inf)",
        ),
        ("1.0", "step", {"also_bound": ("acme.loop:step",)}, "acme.loop:step is not bound to it"),
        ("1.0", "step", {"kind": "add"}, "it is already there"),
        ("1.0", "Sharded.update", {"kind": "add"}, "it is already there"),
        ("1.0", "Missing.update", {"kind": "add"}, "there is no acme.optim:Missing to add to"),
        ("1.0", "step", {"native": lambda: 1 / 0}, "the check failed with ZeroDivisionError"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(
    library: Library, declare: Declare, version: str, target: str, more: dict[str, Any], says: str
) -> None:
    library.write(version, optim=OPTIM, loop="def step(): pass")
    finding = both(declare(f"acme.optim:{target}", **more))
    assert finding.outcome == "refused"
    assert says in finding.message


@pytest.mark.parametrize("parameters", [(), ("grads",), ("grads", "scale"), ("clip",), ("grads", "clip")])
def test_a_wrap_may_rely_on_leading_and_on_keyword_only_parameters(
    library: Library, declare: Declare, parameters: tuple[str, ...]
) -> None:
    library.write(optim=OPTIM)
    assert both(declare("acme.optim:step", parameters=parameters)).outcome == "applied"


def test_the_first_installed_distribution_gives_the_version(library: Library, declare: Declare) -> None:
    library.write(optim=OPTIM)
    assert both(declare("acme.optim:step", distribution=("acme-rl-cuda", "acme-rl"))).version == "1.0"
    finding = both(declare("acme.optim:step", distribution=("acme-rl-cuda", "acme-rl-rocm")))
    assert finding.outcome == "not_installed"
    assert finding.message == "acme-rl-cuda or acme-rl-rocm is not installed"


def test_native_goes_before_the_version(library: Library, declare: Declare) -> None:
    library.write("2.0", optim=OPTIM)
    native = declare("acme.optim:step", native=lambda: "clip" in find_definitions("acme.optim:step")[0].text)
    assert both(native).outcome == "native"


def test_one_fitting_branch_is_enough_in_the_file_and_the_live_check_picks_it(
    library: Library, declare: Declare
) -> None:
    library.write(optim="if len('x') == 2:\n    def step(grads): pass\nelse:\n    def step(loss): pass\n")
    taken, other = (declare("acme.optim:step", parameters=(p,)) for p in ("loss", "grads"))
    assert both(taken).outcome == check_source(other).outcome == "applied"
    assert check_live(other).outcome == "refused"


LOOP = "from acme.optim import step\nfrom acme import optim\ndef run(): return step([1], 1)\n"


def test_a_retained_binding_must_be_declared(library: Library, declare: Declare) -> None:
    library.write(optim=OPTIM, loop=LOOP)
    importlib.import_module("acme.loop")
    finding = check_live(declare("acme.optim:step"))
    assert finding.outcome == "refused"
    assert "acme.loop:step would keep the original" in finding.message
    assert both(declare("acme.optim:step", also_bound=("acme.loop:step",))).outcome == "applied"


def test_a_declared_binding_must_still_be_the_same_object(library: Library, declare: Declare) -> None:
    library.write(optim=OPTIM, loop=LOOP)
    loop: Any = importlib.import_module("acme.loop")
    loop.step = lambda *_: 0
    finding = check_live(declare("acme.optim:step", also_bound=("acme.loop:step",)))
    assert finding.outcome == "refused"
    assert "acme.loop:step is bound to something else" in finding.message


BELOW = """
    from acme.optim import Scaler
    class A(Scaler):
        update = Scaler.update
    class B(A):
        def update(self): pass
"""


def test_subclasses_that_rebind_must_be_declared_and_those_that_override_are_named(
    library: Library, declare: Declare
) -> None:
    library.write(optim=OPTIM, below=BELOW)
    importlib.import_module("acme.below")
    assert "acme.below:A.update would keep the original" in check_live(declare("acme.optim:Scaler.update")).message
    finding = both(declare("acme.optim:Scaler.update", also_bound=("acme.below:A.update",)))
    assert finding.message == "has no effect where it is overridden: acme.below:B.update"


def foreign(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))


def test_someone_elses_wrapper_is_named_and_never_replaced(library: Library, declare: Declare) -> None:
    library.write(optim=OPTIM)
    optim: Any = importlib.import_module("acme.optim")
    optim.step = foreign(optim.step)
    wrap = declare("acme.optim:step", parameters=("grads",))
    assert check_live(wrap).message == f"on top of the wrapper that {__name__} put on it"
    replacement = declare("acme.optim:step", fingerprint=find_definitions("acme.optim:step")[0].fingerprint)
    assert check_live(replacement).outcome == "refused"
    assert f"would drop the wrapper that {__name__}" in check_live(replacement).message


@pytest.mark.parametrize("other", [lambda: 0, print, 3, None], ids=["function", "builtin", "number", "gone"])
def test_what_someone_else_put_in_its_place_is_refused(library: Library, declare: Declare, other: object) -> None:
    library.write(optim=OPTIM)
    optim: Any = importlib.import_module("acme.optim")
    if other is None:
        del optim.step
    else:
        optim.step = other
    assert check_source(declare("acme.optim:step")).outcome == "applied"
    assert check_live(declare("acme.optim:step")).outcome == "refused"


def test_a_name_that_someone_else_has_added_is_not_added(library: Library, declare: Declare) -> None:
    library.write(optim=OPTIM)
    optim: Any = importlib.import_module("acme.optim")
    optim.unscale = foreign(optim.step)
    assert check_source(declare("acme.optim:unscale", kind="add")).outcome == "applied"
    assert check_live(declare("acme.optim:unscale", kind="add")).message == "it is already there"


def test_a_source_changed_after_its_import_is_refused(library: Library, declare: Declare) -> None:
    library.write(optim=OPTIM)
    importlib.import_module("acme.optim")
    library.write(optim=OPTIM.replace("LIMIT = 3", "LIMIT = 3; MORE = (\n    )").replace("sum", "max"))
    assert "its file does not define what is there now" in check_live(declare("acme.optim:step")).message


def test_a_module_that_cannot_be_imported_is_refused(library: Library, declare: Declare) -> None:
    library.write(optim="import acme_missing_dependency\ndef step(): pass")
    assert "acme_missing_dependency" in check_live(declare("acme.optim:step")).message


@pytest.mark.parametrize("kind", [types.ModuleType, types.SimpleNamespace])
def test_lazy_modules_elsewhere_are_not_woken_up(
    library: Library, declare: Declare, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    def wake_up(_: object, name: str) -> Any:
        raise AssertionError(f"{name} was read")

    lazy = type("Lazy", (kind,), {"__getattribute__": wake_up})
    library.write(optim=OPTIM)
    monkeypatch.setitem(sys.modules, "acme_lazy", lazy("acme_lazy") if kind is types.ModuleType else lazy())
    assert check_live(declare("acme.optim:step")).outcome == "applied"


def test_the_error_names_target_versions_and_next_step_and_survives_pickle(library: Library, declare: Declare) -> None:
    library.write("2.0", optim=OPTIM)
    error = pickle.loads(pickle.dumps(refusal(check_source(declare("acme.optim:step", name="acme-step")))))
    check_error(error, "patch-refused", "acme-step", "acme.optim:step", "acme-rl 2.0", "==1.0", "next step: ")
