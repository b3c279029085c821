# SPDX-License-Identifier: Apache-2.0
"""Describe every patch and every plan as JSON, so that a refactoring can prove that it changed neither.

``python tests/golden/golden_patches.py`` writes ``patches.json``; test_patches_golden.py compares with it. Imports no
framework: the upstream functions are stand-ins, built from the ``def`` lines on disk. Only :func:`plans` and
:func:`required` know where the patches are declared.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from fp16_patch.patching import Patch, ProcessKind, find_definitions, installed_version, registry

FILE = Path(__file__).with_name("patches.json")
Plan = dict[str, tuple[Patch, ...]]
Dump = dict[str, Any]

SIGNIFICAND = "FP16_PATCH_ROLLOUT_SIGNIFICAND"
"""The rounding patch reads its bits from here when it is made."""


def plans() -> dict[str, Plan]:
    """Return each plan: upstream module whose import triggers patches -> the patches, in the order applied."""
    from fp16_patch.engines.deepspeed.plan import PLAN as DEEPSPEED
    from fp16_patch.frameworks.openrlhf import entry
    from fp16_patch.frameworks.openrlhf.plan import PLAN as OPENRLHF
    from fp16_patch.frameworks.verl.plan import PLAN as VERL
    from fp16_patch.lab.cpu.plan import MEGATRON_PATCHES, OPENRLHF_PATCHES, PATCHES
    from fp16_patch.lab.cpu.rounded_rollout import PATCHES as ROUNDING
    from fp16_patch.lab.cpu.torch_cuda import MEGATRON_PATCHES as TORCH_CUDA

    return {
        "verl": VERL,
        "openrlhf": _sorted_as_saved("openrlhf", OPENRLHF),
        "openrlhf driver": {"openrlhf.utils.config": (entry.follow_arguments,)},
        "deepspeed": DEEPSPEED,
        "cpu verl": _at_their_targets(PATCHES),
        "cpu openrlhf": _at_their_targets(OPENRLHF_PATCHES),
        "cpu megatron": {"megatron.core": TORCH_CUDA, **_at_their_targets(MEGATRON_PATCHES)},
        "cpu rounding": _at_their_targets(ROUNDING),
    }


def required() -> dict[str, dict[str, tuple[Patch, ...]]]:
    """Return, for each framework and trainer: kind of process -> the patches its ledger must show."""
    from fp16_patch.frameworks.openrlhf.reports import REQUIRED
    from fp16_patch.frameworks.verl import controller
    from fp16_patch.frameworks.verl.plan import ALL_PATCHES

    openrlhf = {kind: patches for kind, patches in REQUIRED.items() if patches and kind != ProcessKind.TRAINER_RANK}
    controllers = (ProcessKind.CONTROLLER, ProcessKind.COORDINATOR, ProcessKind.ASYNC_CONTROLLER)
    trainers = {"": "verl.trainer.ppo.v1.trainer_sync", "legacy trainer, ": "verl.trainer.ppo.ray_trainer"}
    combinations = {
        "fsdp": {"fsdp"},
        "fsdp2": {"fsdp"},
        "megatron": {"megatron"},
        "fsdp2+megatron": {"fsdp", "megatron"},
    }
    return {
        **{
            f"verl {trainer}{strategies}": registry.required(
                [patch for patch in ALL_PATCHES if patch in controller.patches_of(module)], controller.KINDS, engines
            )
            for trainer, module in trainers.items()
            for strategies, engines in combinations.items()
        },
        "openrlhf": openrlhf,
        "openrlhf, shipped with the class": {
            kind: tuple(patch for patch in openrlhf[kind] if patch.shipped) for kind in controllers
        },
    }


def _sorted_as_saved(name: str, plan: Plan) -> Plan:
    """Return the plan with its modules in the order of ``patches.json``: hooks of different modules are independent."""
    saved: list[str] = list(json.loads(FILE.read_text())["plans"][name])
    return {module: plan[module] for module in dict.fromkeys((*saved, *plan)) if module in plan}


def _at_their_targets(patches: Iterable[Patch]) -> Plan:
    plan: Plan = {}
    for patch in patches:
        module = patch.target.partition(":")[0]
        plan[module] = (*plan.get(module, ()), patch)
    return plan


def dump() -> Dump:
    """Describe all plans, what each process must show, and each patch by name."""
    found, patches = plans(), {}
    for plan in found.values():
        for patch in (patch for some in plan.values() for patch in some):
            described = describe(patch)
            assert patches.setdefault(patch.name, described) == described, f"two patches are called {patch.name}"
    return {
        "plans": {name: {module: names(some) for module, some in plan.items()} for name, plan in found.items()},
        "required": {
            trainer: {process: names(some) for process, some in kinds.items()} for trainer, kinds in required().items()
        },
        "patches": dict(sorted(patches.items())),
    }


def names(patches: Iterable[Patch]) -> list[str]:
    return [patch.name for patch in patches]


def describe(patch: Patch) -> Dump:
    """Describe the declaration, and the function that callers and Ray see once it is applied.

    Not included, because they are prose: ``process``, ``reason`` and ``remove_when``.
    """
    return {
        "kind": patch.kind,
        "target": patch.target,
        "also_bound": list(patch.also_bound),
        "distributions": list(patch.release.distributions),
        "versions": patch.release.versions,
        "parameters": None if patch.parameters is None else list(patch.parameters),
        "fingerprints": list(patch.fingerprints),
        "native": patch.native is not None,
        "upstream": patch.upstream,
        "function": _function(patch) if installed_version(patch.release.distributions) else None,
    }


def _function(patch: Patch) -> Dump:
    original = None if patch.kind == "add" else stand_in(patch.target)
    with mock.patch.dict(os.environ, {SIGNIFICAND: "5"}):
        new = patch.make(original)
    if original is not None:
        functools.update_wrapper(new, original)  # as the engine does
    signature = inspect.signature(new)
    if original is None:  # its annotations are ours, and prose
        plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        signature = signature.replace(parameters=plain, return_annotation=signature.empty)
    return {
        "signature": str(signature),
        "is": flags(new),
        "original": "none" if original is None else "source",
        "original is": None if original is None else flags(original),
    }


def flags(function: Callable[..., Any]) -> list[str]:
    """Return which of inspect's predicates hold; Ray decides by them whether an actor is asynchronous."""
    predicates = ("iscoroutinefunction", "isgeneratorfunction", "isasyncgenfunction")
    return [name for name in predicates if getattr(inspect, name)(function)]


class _Default:
    """A default value of a stand-in; shows the source text, which may need names of upstream's module."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def stand_in(target: str) -> Any:
    """Build a function of the same name, signature and kind as the ``def`` of ``target``, with nothing in it."""
    definitions = find_definitions(target)
    assert definitions, f"{target} is not a function on disk"
    (node,) = ast.parse(definitions[0].text).body
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    generates = any(isinstance(inner, (ast.Yield, ast.YieldFrom)) for inner in _own_nodes(node))
    node.body = [ast.parse("yield" if generates else "pass").body[0]]
    node.decorator_list = []
    given: dict[str, Any] = {}
    for defaults in (node.args.defaults, node.args.kw_defaults):
        for index, default in enumerate(defaults):
            if default is not None:
                given[f"_default_{len(given)}"] = _Default(ast.unparse(default))
                defaults[index] = ast.Name(list(given)[-1], ast.Load())
    tree = ast.fix_missing_locations(ast.Module([node], type_ignores=[]))
    # Annotations stay text: their names are upstream's.
    code = compile(tree, f"<{target}>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
    namespace = {"__name__": definitions[0].module, **given}
    exec(code, namespace)
    return namespace[node.name]


def _own_nodes(function: ast.AST) -> Iterable[ast.AST]:
    """Walk a function without the functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield child
            yield from _own_nodes(child)


def main() -> None:
    FILE.write_text(json.dumps(dump(), indent=1) + "\n")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
