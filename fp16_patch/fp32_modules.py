# SPDX-License-Identifier: Apache-2.0
"""FP32 modules: named modules that compute in FP32 while the model around them computes in half precision.

This file finds them, casts their inputs to FP32 and turns autocast off inside. FP32 weights are made where the model
is sharded (``frameworks/verl/trainer_fsdp/fp32_modules.py``).
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fp16_patch.errors import Fp16PatchError

KEY = "fp16_patch.fp32_modules"
_ATTRIBUTE = "_fp16_patch_fp32"


@dataclass(frozen=True, eq=False)
class Fp32Module:
    """``module`` (a torch Module) computes in FP32; ``name`` is its name in the plain model."""

    name: str
    module: Any


def find_fp32_modules(model: Any, patterns: Sequence[str], elsewhere: Iterable[str] = ()) -> list[Fp32Module]:
    """Return the outermost modules whose names match, in the order of ``model.named_modules()``.

    ``model`` is not sharded yet. Patterns are shell-style (``fnmatch``, case-sensitive) and match the names of the
    plain model, without PEFT's ``base_model.model.`` and ``.base_layer``. A list of modules stands for the modules
    in it; modules without parameters are left out. A pattern that matches nothing here is ignored if it matches
    one of ``elsewhere``: names of modules that another model of the same run has.

    Raises :class:`Fp16PatchError` on a pattern without a match or without parameters, on a parameter shared with
    a module outside, and where nothing would be left in half precision.
    """
    named = list(_named_modules(model))
    wanted: set[Any] = set()
    for pattern in patterns:
        matched = [part for name, part in named if fnmatchcase(name, pattern)]
        if not matched and not any(fnmatchcase(name, pattern) for name in elsewhere):
            raise _no_match(pattern, [name for name, _ in named])
        with_parameters = [part for part in matched if any(True for _ in part.parameters())]
        if matched and not with_parameters:
            names = format_names(name for name, part in named if part in matched)
            raise Fp16PatchError(
                f"{KEY}: {pattern!r} matches only modules without parameters ({names})",
                code="fp32-modules-refused",
                allowed="modules with parameters of their own or in their children",
                next_step="name the module that holds the weights",
            )
        wanted.update(with_parameters)
    fp32_modules = list(_outermost(named, wanted))
    _check_parameters(model, fp32_modules)
    return fp32_modules


def compute_in_fp32(fp32_module: Fp32Module, device_type: str) -> None:
    """Make the module compute in FP32: cast its inputs, turn autocast off inside, and mark it.

    The output stays FP32. :func:`list_fp32_modules` finds the mark.
    """
    import torch
    from torch.utils._pytree import tree_map_only

    forward = fp32_module.module.forward

    def widened(tensor: Any) -> Any:
        return tensor.float() if tensor.is_floating_point() else tensor

    @functools.wraps(forward)
    def in_fp32(*args: Any, **kwargs: Any) -> Any:
        # Not left to FSDP: FSDP1 casts no inputs when activation checkpointing runs the forward again.
        args, kwargs = tree_map_only(torch.Tensor, widened, (args, kwargs))
        with torch.autocast(device_type, enabled=False):
            return forward(*args, **kwargs)

    fp32_module.module.forward = in_fp32
    setattr(fp32_module.module, _ATTRIBUTE, fp32_module.name)


def list_fp32_modules(model: Any) -> list[Fp32Module]:
    """Return the modules of ``model`` (sharded or not) that :func:`compute_in_fp32` was called on."""
    return [Fp32Module(vars(part)[_ATTRIBUTE], part) for part in model.modules() if _ATTRIBUTE in vars(part)]


def format_names(names: Iterable[str]) -> str:
    """Return ``"lm_head, model.layers.*.mlp.gate (48)"``: one entry for names that differ only in their numbers."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_without_numbers(name), []).append(name)
    return ", ".join(same[0] if len(same) == 1 else f"{name} ({len(same)})" for name, same in alike.items())


def _named_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name in the plain model, module) of all modules but the model itself; a LoRA layer precedes its base."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's
    for name, part in plain.named_modules():
        if name:
            # trl's value-head model keeps the plain one under pretrained_model.
            yield name.removeprefix("pretrained_model.").replace(".base_layer", ""), part


def _outermost(named: list[tuple[str, Any]], wanted: set[Any]) -> Iterator[Fp32Module]:
    import torch

    inside: set[Any] = set()
    for name, part in named:  # a module comes before those it contains
        if part not in wanted or part in inside:
            continue
        if type(part).forward is torch.nn.Module.forward:  # a list of modules is never called
            wanted.update(part.children())
            continue
        inside.update(part.modules())
        yield Fp32Module(name, part)


def _check_parameters(model: Any, selected: list[Fp32Module]) -> None:
    module_owner = {part: fp32_module for fp32_module in selected for part in fp32_module.module.modules()}
    parameter_owner = {id(p): fp32_module for fp32_module in selected for p in fp32_module.module.parameters()}
    whole_model = bool(selected)
    for name, part in _named_modules(model):
        for parameter in part.parameters(recurse=False):
            owner = parameter_owner.get(id(parameter))
            whole_model &= owner is not None
            if owner is not None and module_owner.get(part) is not owner:
                raise Fp16PatchError(
                    f"{KEY}: {owner.name} shares a parameter with {name}, which is not part of it",
                    code="fp32-modules-refused",
                    allowed="modules whose parameters are their own",
                    next_step=f"leave out {owner.name}, or name a module that contains both",
                )
    if whole_model:
        raise Fp16PatchError(
            f"{KEY}: {format_names(fp32_module.name for fp32_module in selected)} is the whole model",
            code="fp32-modules-refused",
            allowed="parts of the model",
            next_step="set fp16_patch.train_dtype=fp32 to train all of it in FP32",
        )


def _no_match(pattern: str, names: list[str]) -> Fp16PatchError:
    candidates = {_without_numbers(name): name for name in reversed(names)}
    close = difflib.get_close_matches(_without_numbers(pattern), candidates, n=3, cutoff=0.5)
    return Fp16PatchError(
        f"{KEY}: {pattern!r} matches no module" + (f"; the nearest names are {', '.join(close)}" if close else ""),
        code="fp32-modules-not-found",
        allowed="names of the model's modules, * and ? as in file names",
        next_step="correct the name, or print them: [name for name, _ in model.named_modules()]",
    )


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
