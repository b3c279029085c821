# SPDX-License-Identifier: Apache-2.0
"""Build dataclasses from parsed YAML; report every unknown key, missing key and wrong type at once.

The dataclass is the schema: field names are the keys, annotations the types, fields without a default are required.
Supported annotations: str, int, float, optional ones, another dataclass, ``dict[str, T]``, ``tuple[T, ...]``, and
``object`` for any value. ``ALSO`` of a class names keys that were resolved before.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fp16_patch.errors import Fp16PatchError, combine_errors

T = TypeVar("T")
NOT_A_KEY = {"key": False}
"""The metadata of a field that is not read from the file."""
_WORDS = {str: "text", int: "a whole number", float: "a number", type(None): "null"}


def build(cls: type[T], value: object, *, source: str) -> T:
    """Return an instance of the dataclass ``cls`` from ``value``; ``source`` names the file in errors.

    Raises :class:`Fp16PatchError` listing every problem found.
    """
    problems: list[Fp16PatchError] = []
    built = _convert(cls, value, "", problems)
    refuse(problems, source)
    return built  # type: ignore[no-any-return]


def refuse(problems: Sequence[Fp16PatchError], source: str) -> None:
    """Raise one :class:`Fp16PatchError` with all ``problems`` of the file ``source``, if there are any."""
    if problems:
        raise combine_errors([problem.prefixed(source, f"correct {source}") for problem in problems])


def _convert(kind: Any, value: object, key: str, problems: list[Fp16PatchError]) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, key, problems)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, key, problems)
    if origin is dict:
        items = _mapping(value, key, problems).items()
        return {k: _convert(arguments[1], v, _join(key, k), problems) for k, v in items}
    if origin is tuple:
        if not isinstance(value, list):
            problems.append(_wrong(key, value, "a list"))
            return ()
        return tuple(_convert(arguments[0], v, f"{key}[{i}]", problems) for i, v in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        problems.append(_wrong(key, value, _WORDS[kind]))
    return value


def _dataclass(cls: Any, value: object, key: str, problems: list[Fp16PatchError]) -> Any:
    before = len(problems)
    given = _mapping(value, key, problems)
    if len(problems) > before:
        return None
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.metadata.get("key", True)}
    allowed = ", ".join([*fields, *getattr(cls, "ALSO", ())])
    for name in given:
        if name not in fields:
            problems.append(
                Fp16PatchError(f"unknown key {_join(key, name)}={given[name]!r}", code="unknown-key", allowed=allowed)
            )
    arguments = {}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name in given:
            arguments[name] = _convert(hints[name], given[name], _join(key, name), problems)
        elif required:
            problems.append(Fp16PatchError(f"{_join(key, name)} is missing", code="key-missing"))
    return cls(**arguments) if len(problems) == before else None


def _mapping(value: object, key: str, problems: list[Fp16PatchError]) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return value
    problems.append(_wrong(key or "the file", value, "a mapping with text keys"))
    return {}


def _wrong(key: str, value: object, allowed: str) -> Fp16PatchError:
    return Fp16PatchError(f"{key}={value!r} has the wrong type", code="wrong-type", allowed=allowed)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
