# SPDX-License-Identifier: Apache-2.0
"""Find the interpreter that the user's command names, and check that it has this package."""

from __future__ import annotations

import shutil
import subprocess
import sys

from fp16_patch.errors import Fp16PatchError

_PREFIX = "import sys, fp16_patch, omegaconf; print(sys.prefix)"


def find_interpreter(word: str) -> str:
    """Return the path of an interpreter.

    Raises:
        Fp16PatchError: If the program is not found, or its environment lacks this package.
    """
    program = shutil.which(word)
    if program is None:
        raise Fp16PatchError(
            f"program {word!r} was not found",
            code="program-not-found",
            next_step="check the path of the interpreter",
        )
    if _prefix(program) is None:
        raise Fp16PatchError(
            f"fp16-patch is not installed for {program}",
            code="not-installed",
            allowed="the interpreter of the environment that the trainer is installed in",
            next_step=f"{program} -m pip install . in a checkout of this package, or name the right interpreter",
        )
    return program


def is_this_environment(program: str) -> bool:
    """Return whether ``program`` has the packages of this process."""
    return _prefix(program) == sys.prefix


def _prefix(program: str) -> str | None:
    done = subprocess.run([program, "-c", _PREFIX], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()
