# SPDX-License-Identifier: Apache-2.0
"""Types for argparse. Their errors end in ``; allowed: ...``, which :class:`Parser` takes apart."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable
from typing import TypeVar

import yaml

T = TypeVar("T")


def _argument_type(read: Callable[[str], T], allowed: str, fits: Callable[[str], bool] = bool) -> Callable[[str], T]:
    def read_argument(word: str) -> T:
        with contextlib.suppress(ValueError, yaml.YAMLError):
            if fits(word):
                return read(word)
        raise argparse.ArgumentTypeError(f"{word!r}; allowed: {allowed}")

    return read_argument


def _yaml_option(word: str) -> tuple[str, object]:
    key, _, value = word.partition("=")
    if not (key and value):
        raise ValueError(word)
    return key, yaml.safe_load(value)


integer = _argument_type(int, "a whole number")
positive = _argument_type(int, "a whole number, 1 or more", lambda word: word.isdecimal() and int(word) >= 1)
number = _argument_type(float, "a number", lambda word: math.isfinite(float(word)))
positive_number = _argument_type(float, "a number, more than 0", lambda word: 0 < float(word) < math.inf)
yaml_option = _argument_type(_yaml_option, "KEY=VALUE, with a value in YAML")
