# SPDX-License-Identifier: Apache-2.0
"""Check whether a patch fits the files on disk, and again the live objects. Changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching.binding import ABSENT, Binding, function_of, holders, layers, marked_by, subclasses
from fp16_patch.patching.patch import Outcome, Patch
from fp16_patch.patching.source import Definition, exists, find_definitions, text_of


@dataclass(frozen=True)
class PatchStatus:
    """The outcome of a check. ``applied`` means that the patch fits."""

    patch: Patch
    outcome: Outcome
    version: str | None
    message: str

    @property
    def fits(self) -> bool:
        """Return whether the patch can be applied, or upstream already does it."""
        return self.outcome in ("applied", "native")


class _Misfit(Exception):
    """Raised inside the checks: the patch was not written for what is installed."""


def check_source(patch: Patch) -> PatchStatus:
    """Check the installed files for doctor and the driver. Imports neither the target nor its parents."""
    return _find_out(patch, _fits_source)


def check_live(patch: Patch) -> PatchStatus:
    """Check the files, then the live objects, for :func:`apply`. Imports the target's module."""
    return _find_out(patch, _fits_live)


def refusal(finding: PatchStatus) -> Fp16PatchError:
    """Return the error for a refused patch: target, version found, versions known, next step."""
    patch, release = finding.patch, finding.patch.release
    names = " or ".join(release.distributions)
    return Fp16PatchError(
        f"patch {patch.name} cannot change {patch.target} of {names} {finding.version}: {finding.message}",
        code="patch-refused",
        allowed=f"{names} {release.versions}, unmodified",
        next_step=f"install {names} {release.versions}, or an fp16-patch release that supports "
        f"{finding.version}; `fp16-patch doctor` shows every patch",
    )


def installed_version(distributions: Iterable[str]) -> str | None:
    """Return the version of the first of these distributions that is installed; None if none is."""
    from importlib import metadata  # slow to import, and declaring a patch does not need it

    for name in distributions:
        try:
            return str(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return None


def _find_out(patch: Patch, fits: Callable[[Patch], str]) -> PatchStatus:
    release = patch.release
    version = installed_version(release.distributions)
    if version is None:
        return PatchStatus(patch, "not_installed", None, f"{' or '.join(release.distributions)} is not installed")
    try:
        if patch.native is not None and patch.native():
            return PatchStatus(patch, "native", version, "upstream already does it")
        if version not in release:
            raise _Misfit(f"version {version} is not in {release.versions}")
        return PatchStatus(patch, "applied", version, fits(patch))
    except _Misfit as misfit:
        return PatchStatus(patch, "refused", version, str(misfit))
    except Exception as error:  # a broken import, an unreadable file: refuse
        return PatchStatus(patch, "refused", version, f"the check failed with {type(error).__name__}: {error}")


def _fits_source(patch: Patch) -> str:
    if patch.kind == "add":
        owner = patch.target.rpartition("." if "." in patch.target.partition(":")[2] else ":")[0]
        if not exists(owner):
            raise _Misfit(f"there is no {owner} to add to")
        if exists(patch.target):
            raise _Misfit("it is already there")
        return ""
    candidates = find_definitions(patch.target)
    if not candidates:
        raise _Misfit("it is not a function in the source" if exists(patch.target) else "it is not there")
    problems = [_problem(patch, d, d.positional, d.keyword_only) for d in candidates]
    if all(problems):
        raise _Misfit(problems[-1])
    for alias in patch.also_bound:
        if not any(definition in candidates for definition in find_definitions(alias)):
            raise _Misfit(f"{alias} is not bound to it")
    return ""


def _fits_live(patch: Patch) -> str:
    _fits_source(patch)
    target = Binding.at(patch.target)
    if marked_by(target.raw, patch.name):
        return "already in place"
    if (target.raw is ABSENT) is not (patch.kind == "add"):
        raise _Misfit("it is already there" if patch.kind == "add" else "it is not there")
    if patch.kind == "add":
        return ""
    function = function_of(target.raw)
    definition, wrappers = _provenance(patch, function)
    parameters = inspect.signature(function).parameters.values()
    positional = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    keyword_only = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    if problem := _problem(patch, definition, positional, keyword_only):
        raise _Misfit(problem)
    if wrappers and patch.kind == "replace":
        raise _Misfit(f"replacing it would drop the wrapper that {wrappers} put on it")
    overrides = _check_bindings(patch, target, function)
    notes = [f"on top of the wrapper that {wrappers} put on it"] if wrappers else []
    notes += [f"has no effect where it is overridden: {', '.join(overrides)}"] if overrides else []
    return "; ".join(notes)


def _provenance(patch: Patch, function: object) -> tuple[Definition, str]:
    """Return the definition that a live function came from, and the modules that have wrapped it since."""
    stack = layers(function)
    innermost = stack[-1]
    if not isinstance(innermost, FunctionType):
        raise _Misfit(f"it is a {type(innermost).__name__}, not a Python function")
    text = text_of(innermost)
    definition = next((d for d in find_definitions(patch.target) if d.text == text), None)
    if definition is None:
        code = innermost.__code__
        raise _Misfit(f"its file does not define what is there now: {code.co_filename}:{code.co_firstlineno}")
    # Each decorator in the source accounts for one layer at most; whatever is above came later.
    later = stack[: max(0, len(stack) - 1 - definition.decorators)]
    # functools.wraps copies __module__, so ask the globals where a wrapper was written.
    return definition, ", ".join(getattr(f, "__globals__", {}).get("__name__", repr(f)) for f in later)


def _problem(patch: Patch, definition: Definition, positional: tuple[str, ...], keyword_only: tuple[str, ...]) -> str:
    found, known, wanted = definition.fingerprint, patch.fingerprints, patch.parameters or ()
    if known and found not in known:
        return f"its source has changed: fingerprint {found}, known {', '.join(known)}"
    leading = tuple(name for name in wanted if name not in keyword_only)
    if leading != positional[: len(leading)]:
        signature = ", ".join((*positional, "*", *keyword_only) if keyword_only else positional)
        return f"its signature has changed: ({signature}), the patch relies on ({', '.join(wanted)})"
    return ""


def _check_bindings(patch: Patch, target: Binding, function: object) -> list[str]:
    """Refuse undeclared names of the function; return the subclasses' own versions of it."""
    known = [target]
    for alias in patch.also_bound:
        if binding := Binding.loaded(alias):
            if function_of(binding.raw) is not function:
                raise _Misfit(f"{alias} is bound to something else")
            known.append(binding)
    below = subclasses(target.owner) if isinstance(target.owner, type) else []
    overrides = [b for sub in below if (b := Binding(sub, target.name)).own is not ABSENT]
    rebound = [b for b in overrides if function_of(b.own) is function]
    undeclared = [str(b) for b in (*holders(function), *rebound) if b not in known]
    if undeclared:
        raise _Misfit(f"{', '.join(undeclared)} would keep the original, also_bound does not declare it")
    return [str(b) for b in overrides if b not in rebound]
