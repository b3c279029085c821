# SPDX-License-Identifier: Apache-2.0
"""Start a trainer's own command with the flag on it: ``fp16-patch run``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from fp16_patch.cli.interpreter import find_interpreter
from fp16_patch.engines.ray.cluster import cluster_problems
from fp16_patch.errors import combine_errors
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
    from fp16_patch.frameworks.advice import trains_nothing
    from fp16_patch.frameworks.launcher import check_values, command_with_flag

    settings, command = list(options.words), options.command_words
    if command is None:  # without a --
        split = next((i for i, word in enumerate(settings) if "=" not in word), len(settings))
        settings, command = settings[:split], settings[split:]
    arguments = command[command.index("-m") + 2 :] if "-m" in command else []
    if option := trains_nothing(arguments):
        check_values(settings)
        print(
            f"fp16_patch: with {option} the trainer prints something and trains nothing. A configuration is printed "
            "before the flag changes it; `fp16-patch doctor -- COMMAND` lists the changes",
            file=sys.stderr,
        )
    command = command_with_flag(settings, command)
    program = find_interpreter(command[0])
    if problems := cluster_problems(python=program):
        raise combine_errors(problems)
    sys.stdout.flush()
    os.execv(program, command)
