# SPDX-License-Identifier: Apache-2.0
"""Check the packages behind verl's Megatron engine. Imports none of them."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from fp16_patch.engines.megatron.refusals import refused_release
from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import installed_version

BRIDGE = "megatron-bridge"
BRIDGE_RELEASES = "==0.3.1"


def installation_problems() -> list[Fp16PatchError]:
    """Return the packages of the Megatron engine that are missing or of an unsupported release."""
    problems = refused_release()
    found = installed_version([BRIDGE])
    if found is None or not SpecifierSet(BRIDGE_RELEASES).contains(found, prereleases=True):
        problems.append(
            Fp16PatchError(
                f"{BRIDGE} {found} is installed; fp16-patch was tested with another release"
                if found
                else f"{BRIDGE} is not installed",
                code="release-not-supported" if found else "not-installed",
                allowed=f"{BRIDGE}{BRIDGE_RELEASES}",
                next_step=f"pip install '{BRIDGE}{BRIDGE_RELEASES}' on every node, or train with strategy=fsdp2",
            )
        )
    return problems
