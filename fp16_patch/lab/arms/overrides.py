# SPDX-License-Identifier: Apache-2.0
"""Write Hydra overrides so that Hydra's parser returns exactly the value in the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# What Hydra's grammar reads back as the same text without quotes. Digits first would be numbers or 1e-9_2.
_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_/\-.]*")
_WORDS_HYDRA_READS = {"true", "false", "null", "nan", "inf"}


def render(value: object) -> str:
    """Return one value in Hydra's grammar; text is quoted if Hydra would read something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(render(item) for item in value)}]"
    text = str(value)
    if _BARE.fullmatch(text) and text.lower() not in _WORDS_HYDRA_READS:
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.single).with_quotes())


def assignments(values: Mapping[str, object]) -> list[str]:
    """Return ``["a.b=1"]`` for ``{"a.b": 1}``."""
    return [f"{key}={render(value)}" for key, value in values.items()]


def merge(groups: Iterable[Iterable[str]]) -> list[str]:
    """Return the overrides of several groups as one list; a later one replaces an earlier one of the same key.

    Hydra refuses ``+key`` given twice, so the later override keeps the ``+`` of the earlier one.
    """
    merged: dict[str, str] = {}
    for group in groups:
        for override in group:
            written, _, value = override.partition("=")
            key = written.lstrip("+")
            earlier = merged.get(key, "").partition("=")[0]
            merged[key] = f"{max(written, earlier, key=len)}={value}"
    return list(merged.values())


def key_value(override: str) -> tuple[str, str]:
    """Return ``("a.b", "c")`` for ``"++a.b=c"``."""
    key, _, value = override.partition("=")
    return key.lstrip("+"), value
