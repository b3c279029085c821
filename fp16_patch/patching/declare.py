# SPDX-License-Identifier: Apache-2.0
"""Declare a patch at its function: ``@wrap``, ``@replace``, ``@add``, ``@hook`` and ``@scoped``.

Each returns the :class:`Patch`, which takes the function's name in its module. So Ray can ship a patched class to a
process without this package: cloudpickle finds no function of that name and pickles the function by value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from fp16_patch.patching import registry
from fp16_patch.patching.patch import Kind, Patch
from fp16_patch.patching.process_kind import ProcessKind

Handler = Callable[..., Any]
Declaration = Callable[["Handler | Patch"], Patch]


def wrap(target: str, **declared: Any) -> Declaration:
    """Declare a handler ``(original, *args, **kwargs)`` that calls the original.

    To patch several targets with one handler, stack the decorators.

    Args:
        target: ``package.module:Qual.name``.
        **declared: ``release`` (a ``Release``), ``processes`` (of :class:`ProcessKind`), ``reason``, ``upstream``,
            ``remove_when``, and optionally other fields of :class:`Patch`. ``name`` defaults to the function's with
            hyphens, ``parameters`` to the handler's after ``original``. With ``maker=True`` the function is
            ``original -> new function`` instead of a handler.
    """
    return _declaration("wrap", target, **declared)


def hook(target: str, **declared: Any) -> Declaration:
    """Declare a wrap that returns the original's result unchanged. It may raise."""
    return wrap(target, hook=True, **{"upstream": "none: our own proof", "remove_when": "never", **declared})


def replace(target: str, **declared: Any) -> Declaration:
    """Declare a handler ``(*args, **kwargs)`` that takes the place of the original, whose ``fingerprint`` it pins."""
    return _declaration("replace", target, **declared)


def add(target: str, **declared: Any) -> Declaration:
    """Declare a function to add under a name that upstream does not have."""
    return _declaration("add", target, **declared)


def scoped(target: str, **declared: Any) -> Declaration:
    """Declare a wrap that is in place only while :func:`~fp16_patch.patching.scoped_patches.opened` is open.

    The function is a maker: ``(original, *context) -> new function``.
    """
    return wrap(target, maker=True, scoped=True, **{"parameters": (), **declared})


def _declaration(
    kind: Kind,
    target: str,
    *,
    processes: Iterable[ProcessKind],
    name: str | None = None,
    maker: bool = False,
    parameters: tuple[str, ...] | None = None,
    **fields: Any,
) -> Declaration:
    def declare(function: Handler | Patch) -> Patch:
        handler = function.handler if isinstance(function, Patch) else function
        assert handler is not None
        derived = kind == "wrap" and parameters is None
        return registry.register(
            Patch(
                name=name or handler.__name__.strip("_").replace("_", "-"),
                target=target,
                kind=kind,
                processes=frozenset(processes),
                make=handler if maker else _maker(kind, handler),
                handler=handler,
                parameters=_parameters(handler) if derived else parameters,
                module=handler.__module__,
                **fields,
            )
        )

    return declare


def _parameters(handler: Handler) -> tuple[str, ...]:
    parameters = list(inspect.signature(handler).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def _maker(kind: Kind, handler: Handler) -> Callable[[Any], Any]:
    """Return ``original -> closure over the handler``: a coroutine, generator or plain function like it."""

    def make(original: Any) -> Any:
        first = (original,) if kind == "wrap" else ()

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return await handler(*first, *args, **kwargs)

        def generator(*args: Any, **kwargs: Any) -> Any:
            return (yield from handler(*first, *args, **kwargs))

        def plain(*args: Any, **kwargs: Any) -> Any:
            return handler(*first, *args, **kwargs)

        function: Any = plain
        if inspect.iscoroutinefunction(handler):
            function = coroutine
        elif inspect.isgeneratorfunction(handler):
            function = generator
        if kind == "add":  # make_function copies these from the original for the other kinds
            function.__name__ = function.__qualname__ = handler.__name__
            function.__signature__ = inspect.signature(handler)
        return function

    return make
