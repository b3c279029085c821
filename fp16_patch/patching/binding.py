# SPDX-License-Identifier: Apache-2.0
"""A name in a live module or class: read it raw, set it, put it back as it was."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

MARK: Final = "__fp16_patch__"
"""Attribute of each of our functions: the name of its patch."""
ABSENT: Final[Any] = object()


@dataclass(frozen=True)
class Binding:
    """``owner`` is a module or a class, ``name`` an attribute of it that may be absent or inherited."""

    owner: Any
    name: str

    @classmethod
    def at(cls, target: str) -> Binding:
        """Return the place that ``package.module:Qual.name`` means. Imports the module; raises what that raises."""
        module, _, qualname = target.partition(":")
        *path, name = qualname.split(".")
        owner: Any = importlib.import_module(module)
        for part in path:
            owner = _class_behind(getattr(owner, part))
        if not isinstance(owner, (ModuleType, type)):
            raise TypeError(f"{module}:{'.'.join(path)} is a {type(owner).__name__}, not a class")
        return cls(owner, name)

    @classmethod
    def loaded(cls, target: str) -> Binding | None:
        """Return the binding of ``target`` without importing its module, or None if the name is not there yet.

        A module that is still being imported will bind whatever is at the source by then.
        """
        module = sys.modules.get(target.partition(":")[0])
        if module is None:
            return None
        try:
            binding = cls.at(target)
        except AttributeError:
            if is_initialising(module):
                return None
            raise
        return None if binding.raw is ABSENT and is_initialising(module) else binding

    def __str__(self) -> str:
        if isinstance(self.owner, ModuleType):
            return f"{self.owner.__name__}:{self.name}"
        return f"{self.owner.__module__}:{self.owner.__qualname__}.{self.name}"

    @property
    def own(self) -> Any:
        """The raw value that the owner itself holds, ABSENT if it inherits it or has none."""
        return vars(self.owner).get(self.name, ABSENT)

    @property
    def raw(self) -> Any:
        """The raw value, descriptors included, wherever it comes from. ABSENT if there is none."""
        try:
            return inspect.getattr_static(self.owner, self.name)
        except AttributeError:
            return getattr(self.owner, self.name, ABSENT)  # a module may make it in its __getattr__

    def set(self, raw: Any) -> None:
        """Bind ``raw`` at the owner; ABSENT removes the name there."""
        if raw is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, raw)


def _class_behind(found: Any) -> Any:
    """Return the class that ``@ray.remote`` made an actor class of, and ships; anything else as it is."""
    return getattr(getattr(found, "__ray_metadata__", None), "modified_class", found)


def function_of(raw: Any) -> Any:
    """Return the function inside a staticmethod, classmethod or property; anything else as it is."""
    if isinstance(raw, (staticmethod, classmethod)):
        return raw.__func__
    return raw.fget if isinstance(raw, property) else raw


def rewrap(raw: Any, function: Any) -> Any:
    """Return ``function`` in the kind of descriptor that ``raw`` is."""
    if isinstance(raw, (staticmethod, classmethod)):
        return type(raw)(function)
    return raw.getter(function) if isinstance(raw, property) else function


def layers(function: Any) -> list[Any]:
    """Yield the function, what it wraps, what that wraps, and so on to the innermost."""
    inner = getattr(function, "__wrapped__", None)
    return [function] if inner is None else [function, *layers(inner)]


def marked_by(raw: Any, name: str) -> bool:
    """Whether patch ``name`` is in ``raw``, on top or under someone else's wrapper."""
    return any(getattr(layer, MARK, None) == name for layer in layers(function_of(raw)))


def is_initialising(module: ModuleType) -> bool:
    """Whether the module is in the middle of its import."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def holders(function: Any) -> Iterator[Binding]:
    """Every name in an imported module that is bound to ``function``."""
    for module in list(sys.modules.values()):
        if issubclass(type(module), ModuleType):  # isinstance() and vars() would wake lazy stand-ins up
            names: dict[str, Any] = object.__getattribute__(module, "__dict__")
            yield from (Binding(module, name) for name, value in list(names.items()) if value is function)


def subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    """All of them, at any depth."""
    direct: list[type[Any]] = type.__subclasses__(cls)
    for sub in direct:
        yield sub
        yield from subclasses(sub)
