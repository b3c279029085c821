# SPDX-License-Identifier: Apache-2.0
"""Find the installed packages, and check that the patches were written for them. Imports none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import Patch, Release, check_source, installed_version, refusal


def package_folder(package: str, name: str) -> Path:
    """Return the folder of an installed framework, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise Fp16PatchError(
            f"{name} is not installed",
            code="not-installed",
            next_step=f"pip install {package}, or choose another framework",
        )
    return Path(found.origin).parent


def module_file(module: str) -> Path:
    """Return the file of ``python -m MODULE``, or the script ``MODULE``, without importing it or its packages.

    Raises:
        Fp16PatchError: If there is none.
    """
    if module.endswith(".py"):
        if Path(module).is_file():
            return Path(module).resolve()
        raise Fp16PatchError(f"there is no script {module}", code="file-not-found", next_step="correct its path")
    top, *names = module.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    folders = [Path(folder) for folder in found.submodule_search_locations or ()] if found else []
    files = [Path(found.origin)] if found and found.origin and not folders and not names else []
    for folder in folders:
        place = folder.joinpath(*names)
        files += [place / "__main__.py", *([place.with_suffix(".py")] if names else [])]
    for file in files:
        if file.is_file():
            return file
    installed = f"{top} is installed and has no such module" if found else f"{top} is not installed"
    raise Fp16PatchError(
        f"python -m {module}: {installed}",
        code="module-not-found",
        next_step="correct the module's name, or run this with the Python of your trainer",
    )


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
