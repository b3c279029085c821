# SPDX-License-Identifier: Apache-2.0
"""Compose the arguments that OpenRLHF would start with; start nothing."""

from __future__ import annotations

from typing import Any

from fp16_patch.errors import combine_errors
from fp16_patch.frameworks.openrlhf import config, refusals
from fp16_patch.lab.arms.command import Command
from fp16_patch.lab.trainers import openrlhf_arguments


def compose(command: Command) -> Any:
    """Return the parsed arguments, accepted by OpenRLHF's own checks and rewritten by the flag.

    Raises :class:`Fp16PatchError` with OpenRLHF's words or the flag's refusals.
    """
    words = list(command.arguments)
    at = words.index("--")
    settings = config.settings(words[4:at])
    args = openrlhf_arguments.parsed(words[at + 4 :])
    precision = config.precision(args, settings)
    if problems := refusals.unsupported(args, precision):
        raise combine_errors(problems)
    config.rewrite(args, precision)
    return args
