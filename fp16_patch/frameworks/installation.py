# SPDX-License-Identifier: Apache-2.0
"""Is what is installed what the patches of a framework were written for? Imports none of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from packaging.specifiers import SpecifierSet

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import Patch, check_source, installed_version, refusal


def unfit(name: str, distribution: str, releases: str, patches: Iterable[Patch]) -> list[Fp16PatchError]:
    """Everything that speaks against the flag: another release (and then nothing else), no vLLM, changed sources.

    ``name`` is what people call the framework, ``releases`` a version specifier.
    """
    found = installed_version([distribution])
    if found is None:
        return [
            Fp16PatchError(
                f"{name} is not installed",
                code="not-installed",
                allowed=f"{distribution}{releases}",
                next_step=f"pip install '{distribution}{releases}'",
            )
        ]
    if not SpecifierSet(releases).contains(found, prereleases=True):
        return [
            Fp16PatchError(
                f"{name} {found} is installed; the patches were written for and tested with other releases",
                code="release-not-supported",
                allowed=f"{distribution}{releases}",
                next_step=f"pip install '{distribution}{releases}', or an fp16-patch release that knows {found}",
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
    findings = map(check_source, patches)
    return problems + [refusal(finding) for finding in findings if finding.outcome in ("refused", "not_installed")]
