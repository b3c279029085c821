# SPDX-License-Identifier: Apache-2.0
"""Check all patches, then apply them; roll back in reverse if something fails."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any

from fp16_patch.errors import combine_errors
from fp16_patch.patching import ledger
from fp16_patch.patching.binding import MARK, Binding, function_of, holders, marked_by, rewrap
from fp16_patch.patching.checks import PatchStatus, check_live, refusal
from fp16_patch.patching.ledger import Ledger, LedgerEntry
from fp16_patch.patching.patch import Patch, validate_plan


@dataclass
class _Applied:
    finding: PatchStatus
    original: Any = None
    changes: list[tuple[Binding, Any, Any]] = field(default_factory=list)
    """Binding, what its owner held before (ABSENT if inherited or missing), what it holds now."""


_applied: dict[str, _Applied] = {}
# Held during changes but not during checks: checks import modules, and imports take locks of their own.
_lock = threading.RLock()


def apply(patches: Iterable[Patch]) -> list[LedgerEntry]:
    """Apply the patches in order, all or none, and return their ledger entries. Applying again is a no-op.

    Imports the modules of the targets.

    Raises:
        Fp16PatchError: If a patch is refused or cannot be made; nothing is applied then.
        ValueError: If two of the patches exclude each other.
    """
    findings = [check_live(patch) for patch in validate_plan(patches)]
    for finding in findings:
        if finding.outcome != "applied":
            record(finding)
    refused = [refusal(finding) for finding in findings if finding.outcome == "refused"]
    if refused:
        raise combine_errors(refused)
    _install([finding for finding in findings if finding.outcome == "applied"])
    return [ledger.current.get(finding.patch.name) or record(finding) for finding in findings]


def undo(patches: Iterable[Patch] | None = None) -> list[LedgerEntry]:
    """Undo these patches, all by default, in reverse. Leave alone what other code has set since.

    Returns the entries of the patches that are still in force for that reason.
    """
    asked = None if patches is None else {patch.name for patch in patches}
    with _lock:
        ours = [applied for name, applied in _applied.items() if asked is None or name in asked]
        left = [(applied.finding, kept) for applied in reversed(ours) if (kept := _restore(applied))]
    for entry in ledger.current.entries:
        if asked is None or entry.name in asked:
            ledger.current.remove(entry.name)
    return [record(replace(f, message=f"not undone, set since: {', '.join(kept)}")) for f, kept in left]


def status() -> Ledger:
    """Return this process's ledger."""
    return ledger.current


def _install(findings: list[PatchStatus]) -> None:
    done: list[_Applied] = []
    current: PatchStatus | None = None
    try:
        for current in findings:
            with _lock:
                if not marked_by(Binding.at(current.patch.target).raw, current.patch.name):
                    done.append(_Applied(current))
                    _set(done[-1])
    except BaseException as error:
        with _lock:
            for applied in reversed(done):
                _restore(applied)
        if current is None or not isinstance(error, Exception):
            raise
        failed = replace(current, outcome="refused", message=f"{type(error).__name__}: {error}")
        record(failed)
        raise refusal(failed) from error
    for applied in done:
        record(applied.finding)


def _set(applied: _Applied) -> None:
    patch = applied.finding.patch
    target = Binding.at(patch.target)
    applied.original = None if patch.kind == "add" else function_of(target.raw)
    function = make_function(patch, applied.original)
    _applied[patch.name] = applied
    for binding in [target, *filter(None, map(Binding.loaded, patch.also_bound))]:
        after = rewrap(binding.raw, function)
        applied.changes.append((binding, binding.own, after))
        binding.set(after)


def _restore(applied: _Applied) -> list[str]:
    """Restore the bindings that still hold our function; return the others."""
    ours = [change for change in applied.changes if change[0].own is change[2]]
    for binding, before, _ in reversed(ours):
        binding.set(before)
    for _, _, after in ours if applied.original is not None else ():
        for late in holders(after):
            late.set(applied.original)  # bound by modules that were imported while the patch was applied
    applied.changes = [change for change in applied.changes if change not in ours]
    if not applied.changes:
        _applied.pop(applied.finding.patch.name, None)
    return [str(binding) for binding, _, _ in applied.changes]


def make_function(patch: Patch, original: Any, *context: Any) -> FunctionType:
    """Return the patch's function for ``original``, with the patch's name on it. An ``add`` has no original: None.

    Raises:
        TypeError: If ``patch.make`` does not return a new plain function.
    """
    function = patch.make(original, *context)
    # A proxy or a partial is lost when Ray ships the class it sits on. Not isinstance, which a proxy passes.
    if type(function) is not FunctionType or function is original:
        raise TypeError(f"make must return a new plain function, not {function!r}")
    if original is not None:
        functools.update_wrapper(function, original)
    setattr(function, MARK, patch.name)
    return function


def record(finding: PatchStatus) -> LedgerEntry:
    """Enter the outcome of a patch into this process's ledger, and return the entry."""
    patch, outcome, version, message = finding.patch, finding.outcome, finding.version, finding.message
    return ledger.current.record(LedgerEntry(patch.name, patch.target, outcome, version, message, patch.process_names))
