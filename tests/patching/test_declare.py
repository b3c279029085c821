# SPDX-License-Identifier: Apache-2.0
"""Patches declared at their function: what the decorators derive, and what the registry answers."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fp16_patch.patching import (
    Patch,
    ProcessKind,
    Release,
    add,
    apply,
    attach,
    declared_in,
    hook,
    opened,
    plan,
    replace,
    required,
    scoped,
    status,
    wrap,
)
from fp16_patch.patching.source import find_definitions

if TYPE_CHECKING:
    from conftest import Library

RELEASE = Release("acme-rl", "==1.0")
WHY: dict[str, Any] = {"release": RELEASE, "reason": "a test", "upstream": "none", "remove_when": "never"}
RANK, WORKER = {ProcessKind.TRAINER_RANK}, {ProcessKind.VLLM_WORKER}

OPTIM = """
    def step(grads, *, lr=1): return sum(grads)
    async def sync(grads): return sum(grads)
    def stream(grads): yield from grads
    class Scaler:
        def update(self, grads): return sum(grads)
"""


@pytest.fixture
def optim(library: Library) -> Any:
    import importlib

    library.write(optim=OPTIM)
    return importlib.import_module("acme.optim")


def test_a_wrap_takes_name_parameters_and_module_from_its_function(optim: Any) -> None:
    @wrap("acme.optim:step", processes=RANK, **WHY)
    def double_step(original: Any, grads: Any, *args: Any, lr: int = 1, **kwargs: Any) -> Any:
        return 2 * original(grads)

    assert (double_step.name, double_step.kind) == ("double-step", "wrap")
    assert double_step.parameters == ("grads", "lr")
    assert (double_step.module, double_step.trigger) == (__name__, "acme.optim")
    apply([double_step])
    assert optim.step([1, 2]) == 6


@pytest.mark.parametrize("name", ["sync", "stream"])
def test_the_new_function_is_of_the_kind_of_its_handler(optim: Any, name: str) -> None:
    @wrap("acme.optim:sync", processes=RANK, **WHY)
    async def sync(original: Any, grads: Any) -> Any:
        return 2 * await original(grads)

    @wrap("acme.optim:stream", processes=RANK, **WHY)
    def stream(original: Any, grads: Any) -> Any:
        yield from original(grads)
        yield 10

    apply([sync, stream])
    assert inspect.iscoroutinefunction(optim.sync)
    assert inspect.isgeneratorfunction(optim.stream)
    with pytest.raises(StopIteration) as returned:
        optim.sync([1, 2]).send(None)
    assert returned.value.value == 6
    assert list(optim.stream([1])) == [1, 10]


def test_replace_and_add_get_no_original(optim: Any) -> None:
    fingerprint = find_definitions("acme.optim:Scaler.update")[0].fingerprint

    @replace("acme.optim:Scaler.update", processes=RANK, fingerprint=fingerprint, **WHY)
    def update(self: Any, grads: Any) -> Any:
        return -1

    @add("acme.optim:Scaler.report", processes=RANK, **WHY)
    def report(self: Any, text: str = "") -> str:
        return f"report{text}"

    apply([update, report])
    scaler = optim.Scaler()
    assert (scaler.update([1]), scaler.report("!")) == (-1, "report!")
    assert (optim.Scaler.report.__name__, list(inspect.signature(scaler.report).parameters)) == ("report", ["text"])


def test_a_hook_needs_no_removal_plan() -> None:
    @hook("acme.optim:step", processes=RANK, release=RELEASE, reason="reads")
    def watch(original: Any, grads: Any) -> Any:
        return original(grads)

    assert (watch.hook, watch.remove_when) == (True, "never")


def test_stacked_decorators_declare_one_handler_for_several_targets(optim: Any) -> None:
    @wrap("acme.optim:Scaler.update", name="second", parameters=("self",), processes=RANK, **WHY)
    @wrap("acme.optim:step", name="first", parameters=("grads",), processes=RANK, **WHY)
    def doubled(original: Any, *args: Any) -> Any:
        return 2 * original(*args)

    apply(declared_in(sys.modules[__name__])[-2:])
    assert (optim.step([1]), optim.Scaler().update([1])) == (2, 2)
    assert doubled.name == "second"


def test_two_modules_cannot_declare_one_name(library: Library) -> None:
    @wrap("acme.optim:step", name="taken", processes=RANK, **WHY)
    def mine(original: Any, grads: Any) -> Any: ...

    library.write(theirs="")
    theirs = wrap("acme.optim:step", name="taken", processes=RANK, **WHY)

    def theirs_too(original: Any, grads: Any) -> Any: ...

    theirs_too.__module__ = "acme.theirs"
    with pytest.raises(ValueError, match="both declare"):
        theirs(theirs_too)


def made(name: str, **fields: Any) -> Patch:
    def handler(original: Any) -> Any: ...

    return wrap("acme.optim:step", name=name, **{"processes": RANK, **WHY, **fields})(handler)


def test_what_each_kind_of_process_must_show_is_derived() -> None:
    every = made("every", processes={ProcessKind.ANY})
    fsdp, megatron = made("fsdp", engine="fsdp"), made("megatron", engine="megatron")
    optional = made("optional", required=False)
    worker = made("worker", processes=WORKER)
    found = required(
        [every, fsdp, megatron, optional, worker],
        [ProcessKind.TRAINER_RANK, ProcessKind.CRITIC_RANK, ProcessKind.VLLM_WORKER],
        {"fsdp"},
    )
    assert found == {
        ProcessKind.TRAINER_RANK: (every, fsdp),
        ProcessKind.CRITIC_RANK: (every, fsdp),
        ProcessKind.VLLM_WORKER: (every, worker),
    }


def test_a_plan_goes_by_trigger_and_leaves_scoped_patches_out() -> None:
    first, second, third = made("a"), made("b", when="acme.other"), made("c")
    alone = scoped("acme.optim:step", name="d", processes=RANK, **WHY)(lambda original: original)
    assert plan([first, second, third, alone]) == {"acme.optim": (first, third), "acme.other": (second,)}


def test_a_scoped_patch_is_in_place_during_the_call_only(optim: Any) -> None:
    original = optim.step

    @scoped("acme.optim:step", processes=RANK, **WHY)
    def times(original: Any, factor: int) -> Any:
        return lambda grads: factor * original(grads)

    with opened(times, 3):
        assert optim.step([1]) == 3
        assert optim.step.__fp16_patch__ == "times"
    assert optim.step is original
    with pytest.raises(TypeError), opened(times, 3):
        optim.step(None)
    assert optim.step is original
    assert [(entry.name, entry.outcome) for entry in status().entries] == [("times", "applied")]


def test_a_patch_can_be_attached_to_one_object(optim: Any) -> None:
    @scoped("acme.optim:Scaler.update", processes=RANK, **WHY)
    def doubled(original: Any) -> Any:
        return lambda grads: 2 * original(grads)

    scaler = optim.Scaler()
    attach(doubled, scaler)
    attach(doubled, scaler)
    assert (scaler.update([1]), optim.Scaler().update([1])) == (2, 1)
