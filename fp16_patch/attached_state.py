# SPDX-License-Identifier: Apache-2.0
"""Attach state of this package to an object of a framework."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")

_ATTRIBUTE = "_fp16_patch"  # holds a dictionary: class of the state -> state


def attached(obj: Any, kind: type[T]) -> T:
    """Return the state of class ``kind`` on ``obj``. Make it with ``kind()`` at the first call."""
    states: dict[type, Any] = vars(obj).setdefault(_ATTRIBUTE, {})
    if kind not in states:
        states[kind] = kind()
    state: T = states[kind]
    return state
