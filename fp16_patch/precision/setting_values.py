# SPDX-License-Identifier: Apache-2.0
"""Read the values of settings as Hydra reads overrides, so that a setting means the same on every framework."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.precision.loss_scaling import as_typed


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return ``{"loss_scaling": {"init_scale": 1024}}`` for ``["fp16_patch.loss_scaling.init_scale=1024"]``.

    Raises:
        Fp16PatchError: If Hydra cannot read a value, or reads several or an interpolation that cannot be resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = OmegaConf.create({"fp16_patch": {}})
    for word in words:
        key, value = _parse(word)
        try:
            OmegaConf.update(node, key, value, merge=True)
            OmegaConf.to_container(node, resolve=True)
        except OmegaConfBaseException as error:  # such as ${oc.env:NAME} of a variable that is not set
            raise _unreadable(word, error) from error
    found: dict[str, Any] = OmegaConf.to_container(node, resolve=True)["fp16_patch"]
    return found


def check_repeated(words: Sequence[str], command: Sequence[str] = ()) -> None:
    """Check that no setting has two values, among ``words`` or in them and among the arguments of the command.

    Two values among the arguments of the command are left to the framework.

    Raises:
        Fp16PatchError: If a setting has two values, or a value of ``words`` cannot be read; names every one.
    """
    first: dict[str, tuple[object, str]] = {}
    problems = []
    for word in words:
        for key, value in _leaves(*_parse(word)):
            before, its_word = first.setdefault(key, (value, word))
            if _differ(before, value):
                problems.append(_two_values(its_word, word))
    for key, value, word in _settings_in(command):
        if key in first and _differ(first[key][0], value):
            problems.append(_two_values(first[key][1], word))
    if problems:
        raise combine_errors(problems)


def _parse(word: str) -> tuple[str, Any]:
    """Return the key and the value of an override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise _unreadable(word, error) from error
    if parsed.is_sweep_override():
        raise _unreadable(word, "it has several values")
    return parsed.key_or_group, parsed.value()


def _settings_in(command: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and word of each setting among a command's arguments that can be read."""
    for word in command:
        override = word.lstrip("+")
        if override.startswith("fp16_patch."):
            with contextlib.suppress(Fp16PatchError):  # the framework reads it, and says what is wrong
                yield from ((key, value, word) for key, value in _leaves(*_parse(override)))


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _leaves(f"{key}.{name}", child)
    else:
        yield key, value


def _differ(one: object, other: object) -> bool:
    return one != other and as_typed(one) != as_typed(other)  # NaN differs from itself


def _two_values(one: str, other: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"the same setting has two values: {one!r} and {other!r}",
        code="setting-repeated",
        allowed="one value for each setting",
        next_step="remove one of them",
    )


def _unreadable(word: str, why: object) -> Fp16PatchError:
    reason = str(why).splitlines()[0]
    return Fp16PatchError(
        f"{word!r} cannot be read: {reason}",
        code="setting-unreadable",
        allowed="a value in Hydra's grammar, such as 1024, bf16, [a,b] or 'text with = or spaces'",
        next_step="correct the value, and quote it for the shell",
    )
