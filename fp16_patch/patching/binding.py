# SPDX-License-Identifier: Apache-2.0
"""Read, set and restore a name in a live module or class, descriptors included."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

MARK: Final = "__fp16_patch__"
"""Attribute of each function that a patch puts in place: the patch's name."""
ABSENT: Final[Any] = object()


@dataclass(frozen=True)
class Binding:
    """An attribute ``name`` of a module or class ``owner``. It may be absent or inherited."""

    owner: Any
    name: str

    @classmethod
    def at(cls, target: str) -> Binding:
        """Return the binding of ``package.module:Qual.name``. Imports the module; raises what that raises."""
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

        A module that is still being imported binds the patched function when it comes to that import.
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
        """Return the raw value that the owner itself holds; ABSENT if it is inherited or missing."""
        return vars(self.owner).get(self.name, ABSENT)

    @property
    def raw(self) -> Any:
        """Return the raw value, descriptors included, own or inherited; ABSENT if there is none."""
        try:
            return inspect.getattr_static(self.owner, self.name)
        except AttributeError:
            return getattr(self.owner, self.name, ABSENT)  # a module's __getattr__ may make it

    def set(self, raw: Any) -> None:
        """Set the raw value on the owner; ABSENT deletes it."""
        if raw is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, raw)


def _class_behind(found: Any) -> Any:
    """Return the class behind a ``@ray.remote`` actor class, which Ray ships; anything else unchanged."""
    return getattr(getattr(found, "__ray_metadata__", None), "modified_class", found)


def function_of(raw: Any) -> Any:
    """Return the function inside a staticmethod, classmethod or property; anything else unchanged."""
    if isinstance(raw, (staticmethod, classmethod)):
        return raw.__func__
    return raw.fget if isinstance(raw, property) else raw


def rewrap(raw: Any, function: Any) -> Any:
    """Return ``function`` in the same kind of descriptor as ``raw``."""
    if isinstance(raw, (staticmethod, classmethod)):
        return type(raw)(function)
    return raw.getter(function) if isinstance(raw, property) else function


def layers(function: Any) -> list[Any]:
    """Return the function, the one it wraps, and so on to the innermost."""
    inner = getattr(function, "__wrapped__", None)
    return [function] if inner is None else [function, *layers(inner)]


def marked_by(raw: Any, name: str) -> bool:
    """Return whether patch ``name`` is in ``raw``, on top or under another wrapper."""
    return any(getattr(layer, MARK, None) == name for layer in layers(function_of(raw)))


def is_initialising(module: ModuleType) -> bool:
    """Return whether the module is being imported."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def holders(function: Any) -> Iterator[Binding]:
    """Yield every name in an imported module that is bound to ``function``."""
    for module in list(sys.modules.values()):
        if issubclass(type(module), ModuleType):  # isinstance() and vars() would load lazy modules
            names: dict[str, Any] = object.__getattribute__(module, "__dict__")
            yield from (Binding(module, name) for name, value in list(names.items()) if value is function)


def subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    """Yield all subclasses, at any depth."""
    direct: list[type[Any]] = type.__subclasses__(cls)
    for sub in direct:
        yield sub
        yield from subclasses(sub)
