# SPDX-License-Identifier: Apache-2.0
"""Check that the installed packages are those the patches of a framework were written for. Imports none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from packaging.specifiers import SpecifierSet

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import Patch, Release, check_source, installed_version, refusal


def framework_problems(name: str, release: Release, patches: Iterable[Patch]) -> list[Fp16PatchError]:
    """Return what keeps the flag from working: another release (and then nothing else), no vLLM, changed sources.

    ``name`` is what people call the framework.
    """
    found, wanted = installed_version(release.distributions), f"{release.distributions[0]}{release.versions}"
    if found is None:
        return [
            Fp16PatchError(
                f"{name} is not installed",
                code="not-installed",
                allowed=wanted,
                next_step=f"pip install '{wanted}'",
            )
        ]
    if not SpecifierSet(release.versions).contains(found, prereleases=True):
        return [
            Fp16PatchError(
                f"{name} {found} is installed; the patches were written for and tested with other releases",
                code="release-not-supported",
                allowed=wanted,
                next_step=f"pip install '{wanted}', or an fp16-patch release that knows {found}",
            )
        ]
    problems = []
    if importlib.util.find_spec("vllm") is None:
        problems.append(
            Fp16PatchError(
                "vLLM is not installed in the driver's environment",
                code="not-installed",
                allowed=f"the vLLM release your {name} release supports",
                next_step=f"install it beside {name} (pip install vllm), on every node",
            )
        )
    found_patches = map(check_source, patches)
    return problems + [refusal(status) for status in found_patches if status.outcome in ("refused", "not_installed")]
