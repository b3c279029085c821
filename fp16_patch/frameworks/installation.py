# SPDX-License-Identifier: Apache-2.0
"""Check that the installed packages are those the patches of a framework were written for. Imports none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import Patch, Release, check_source, installed_version, refusal


def framework_problems(name: str, release: Release, patches: Iterable[Patch]) -> Iterator[Fp16PatchError]:
    """Yield what keeps the flag from working: another release (and then nothing else), no vLLM, changed sources.

    ``name`` is how errors spell the framework.
    """
    found, wanted = installed_version(release.distributions), f"{release.distributions[0]}{release.versions}"
    install = f"pip install '{wanted}'"
    if found is None:
        yield Fp16PatchError(f"{name} is not installed", code="not-installed", allowed=wanted, next_step=install)
    elif found not in release:
        yield Fp16PatchError(
            f"{name} {found} is installed; the patches were written for and tested with other releases",
            code="release-not-supported",
            allowed=wanted,
            next_step=f"{install}, or an fp16-patch release that supports {found}",
        )
    else:
        if importlib.util.find_spec("vllm") is None:
            yield Fp16PatchError(
                "vLLM is not installed in the driver's environment",
                code="not-installed",
                allowed=f"the vLLM release that your {name} release supports",
                next_step="pip install vllm in the environment of the driver and of every node",
            )
        statuses = map(check_source, patches)
        yield from (refusal(status) for status in statuses if not status.fits)
