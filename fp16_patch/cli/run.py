# SPDX-License-Identifier: Apache-2.0
"""Start a trainer's own command with the flag on it: ``fp16-patch run``."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from typing import Any

from fp16_patch.engines.ray.cluster import cluster_problems
from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.precision.setting_names import check_settings


def add_parser(subparsers: Any) -> None:
    """Add ``run`` to the commands."""
    parser = subparsers.add_parser(
        "run",
        help="start verl or OpenRLHF with the flag",
        usage="fp16-patch run [fp16_patch.NAME=VALUE ...] -- python -m MODULE [ARGUMENT ...]",
        description="Start the trainer's own command with the flag on it. On OpenRLHF --ds.param_dtype sets the "
        "precision; on verl it is fp16 unless the command has +precision@_global_=...",
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.check_unknown = check_settings
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replace this process with the trainer's.

    Raises:
        Fp16PatchError: If the command cannot be started, or its Ray cluster does not answer.
    """
    from fp16_patch.frameworks.launcher import command_with_flag

    words = list(options.words)
    # argparse removes a leading --.
    split = words.index("--") if "--" in words else next((i for i, w in enumerate(words) if "=" not in w), len(words))
    settings, command = words[:split], words[split:]
    command = command_with_flag(settings, command[1:] if command[:1] == ["--"] else command)
    program = shutil.which(command[0])
    if program is None:
        raise Fp16PatchError(
            f"program {command[0]!r} was not found",
            code="program-not-found",
            next_step="check the path of the interpreter",
        )
    if subprocess.run([program, "-c", "import fp16_patch, omegaconf"], capture_output=True, check=False).returncode:
        raise Fp16PatchError(
            f"fp16-patch is not installed for {program}",
            code="not-installed",
            allowed="the interpreter of the environment that the trainer is installed in",
            next_step=f"{program} -m pip install fp16-patch, or name the right interpreter after the --",
        )
    if problems := cluster_problems(python=program):
        raise combine_errors(problems)
    sys.stdout.flush()
    os.execv(program, command)
