# SPDX-License-Identifier: Apache-2.0
"""Keep every declared patch. Plans, required patches, doctor, docs and tests are read from here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from types import ModuleType

from fp16_patch.patching.applying import apply
from fp16_patch.patching.import_hooks import when_imported
from fp16_patch.patching.patch import Patch
from fp16_patch.patching.process_kind import ProcessKind

Plan = Mapping[str, tuple[Patch, ...]]
"""Upstream module -> the patches applied, all or none, right after it is imported."""

_declared: dict[str, Patch] = {}


def register(patch: Patch) -> Patch:
    """Add a patch, and return it.

    Raises:
        ValueError: If another module has declared a patch of that name.
    """
    known = _declared.get(patch.name)
    if known is not None and known.module != patch.module:
        raise ValueError(f"{known.module} and {patch.module} both declare the patch {patch.name!r}")
    _declared[patch.name] = patch
    return patch


def declared_in(*modules: ModuleType) -> tuple[Patch, ...]:
    """Return the patches that these modules declare: module by module, in the order of their functions."""
    return tuple(patch for module in modules for patch in _declared.values() if patch.module == module.__name__)


def declared_under(package: str) -> tuple[Patch, ...]:
    """Return the patches that the modules of a package declare, as far as they have been imported."""
    return tuple(patch for patch in _declared.values() if patch.module.startswith(f"{package}."))


def plan(patches: Iterable[Patch]) -> dict[str, tuple[Patch, ...]]:
    """Sort patches by the module whose import triggers them. Scoped ones are left out."""
    found: dict[str, tuple[Patch, ...]] = {}
    for patch in patches:
        if not patch.scoped:
            found[patch.trigger] = (*found.get(patch.trigger, ()), patch)
    return found


def required(
    patches: Iterable[Patch], kinds: Iterable[ProcessKind], engines: Collection[str] = ()
) -> dict[ProcessKind, tuple[Patch, ...]]:
    """Return, for each kind of process, the patches that its ledger must show in a run with these engines."""
    listed = [patch for patch in patches if patch.required and (patch.engine is None or patch.engine in engines)]
    return {kind: tuple(patch for patch in listed if patch.processes & kind.kinds) for kind in kinds}


def register_import_hooks(plan: Plan) -> None:
    """Apply each module's patches right after it is imported, in this process."""
    for module, patches in plan.items():
        when_imported(module, partial(_apply, patches))


def _apply(patches: tuple[Patch, ...], _module: ModuleType) -> None:
    apply(patches)
