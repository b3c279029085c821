# SPDX-License-Identifier: Apache-2.0
"""Are the packages behind verl's Megatron engine those that the patches were written for? Imports none of them."""

from __future__ import annotations

import importlib.util

from packaging.specifiers import SpecifierSet

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import installed_version

RELEASES = {"megatron-core": ">=0.16.1,<0.17", "megatron-bridge": ">=0.3.1,<0.4"}
"""The releases that were read and run with."""


def unfit_installation() -> list[Fp16PatchError]:
    """Packages of the Megatron engine that are missing, or of releases not known here."""
    problems = []
    for name, releases in RELEASES.items():
        found = installed_version([name])
        if found is None or not SpecifierSet(releases).contains(found, prereleases=True):
            problems.append(
                Fp16PatchError(
                    f"{name} {found} is installed" if found else f"{name} is not installed",
                    allowed=f"{name}{releases}",
                    next_step=f"pip install '{name}{releases}' on every node, or train with strategy=fsdp2",
                )
            )
    return problems


def has_transformer_engine() -> bool:
    """Whether NVIDIA's TransformerEngine is installed here, the home of the precision-aware FusedAdam."""
    return importlib.util.find_spec("transformer_engine") is not None
