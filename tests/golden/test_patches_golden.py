# SPDX-License-Identifier: Apache-2.0
"""Every patch is what it was: names, targets, order, releases, and the functions that callers and Ray see.

After a change that is meant: ``python tests/golden/golden_patches.py``, and review the difference in patches.json.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

import golden_patches
import pytest

WRITER = "python tests/golden/golden_patches.py"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(golden_patches.FILE.read_text())


@pytest.fixture(scope="module")
def today() -> dict[str, Any]:
    return json.loads(json.dumps(golden_patches.dump()))


def difference(golden: Any, today: Any) -> str:
    was, now = (json.dumps(part, indent=1).splitlines() for part in (golden, today))
    lines = "\n".join(difflib.unified_diff(was, now, "patches.json", "today", lineterm="", n=4))
    return f"if this is meant, run {WRITER} and review:\n{lines}"


def test_the_dump_covers_every_plan(golden: dict[str, Any]) -> None:
    assert len(golden["plans"]) == 8
    assert all(names for plan in golden["plans"].values() for names in plan.values())
    assert len(golden["patches"]) > 80
    flags = [patch["function"]["is"] for patch in golden["patches"].values()]
    assert ["iscoroutinefunction"] in flags
    assert [] in flags


@pytest.mark.parametrize(
    "plan",
    [
        "verl",
        "openrlhf",
        "openrlhf driver",
        "deepspeed",
        *(f"cpu {name}" for name in ("verl", "openrlhf", "megatron", "rounding")),
    ],
)
def test_each_module_gets_its_patches_in_the_same_order(golden: Any, today: Any, plan: str) -> None:
    was, now = golden["plans"][plan], today["plans"].get(plan)
    assert list(now or {}) == list(was), "the modules, or their order, differ"
    assert now == was, difference(was, now)


def test_each_process_must_show_the_same_patches(golden: Any, today: Any) -> None:
    def as_sets(required: Any) -> Any:
        return {trainer: {process: sorted(n) for process, n in kinds.items()} for trainer, kinds in required.items()}

    was, now = as_sets(golden["required"]), as_sets(today["required"])
    assert now == was, difference(was, now)


def test_each_patch_is_the_same(golden: Any, today: Any) -> None:
    was, now = dict(golden["patches"]), dict(today["patches"])
    assert sorted(now) == sorted(was), "patches were added, removed or renamed"
    for name in was:
        if now[name]["function"] is None:  # its distribution is not installed here
            was[name] = {**was[name], "function": None}
    assert now == was, difference(was, now)


def test_a_function_is_of_the_kind_it_stands_for(today: Any) -> None:
    """A coroutine where upstream has none, or the reverse, changes what Ray makes of the class."""
    differing = {
        name
        for name, patch in today["patches"].items()
        if (made := patch["function"]) and made["original is"] is not None and made["is"] != made["original is"]
    }
    assert differing == set(), differing


def test_a_stand_in_is_like_the_real_function() -> None:
    import asyncio
    import contextlib
    import inspect
    import json.encoder
    import tempfile

    for target, real in {
        "json.encoder:JSONEncoder.iterencode": json.encoder.JSONEncoder.iterencode,
        "json.encoder:_make_iterencode": json.encoder._make_iterencode,
        "asyncio.locks:Lock.acquire": asyncio.Lock.acquire,
        "tempfile:mkdtemp": tempfile.mkdtemp,
        "contextlib:AsyncExitStack.aclose": contextlib.AsyncExitStack.aclose,
        "ast:walk": __import__("ast").walk,
    }.items():
        stand_in = golden_patches.stand_in(target)
        assert golden_patches.flags(stand_in) == golden_patches.flags(real), target
        assert list(inspect.signature(stand_in).parameters) == list(inspect.signature(real).parameters)
