# SPDX-License-Identifier: Apache-2.0
"""The settings of an arm as data: ``settings.json``, which the launcher writes into the arm's folder at the start.

``overrides`` are the framework's options without leading ``+`` or ``--``, and ``environment`` is what the launcher adds
to its own; all values are text::

    {"format": "fp16_patch.settings/1", "framework": "verl", "arm": "fp16", "module": "verl.trainer.main_ppo",
     "folder": "/runs/sanity-grpo/fp16", "overrides": {"trainer.total_training_steps": "4"},
     "environment": {"HYDRA_FULL_ERROR": "1"}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp16_patch.files import write_atomically
from fp16_patch.lab.arms.command import MATH_REWARD, ArmFiles, Command

FORMAT = "fp16_patch.settings/1"
_VERIFIER = re.compile(rf"/[^\s=]*/{re.escape(MATH_REWARD.name)}")
_FROM_THE_PATH = "RAY_TMPDIR"
"""A variable that is computed from the path of the run directory, and does not contain it."""


def settings_of(files: ArmFiles, framework: str, command: Command) -> dict[str, Any]:
    """Return the settings of an arm that ``command`` starts."""
    return {
        "format": FORMAT,
        "framework": framework,
        "arm": files.folder.name,
        "module": command.parts[0][2],
        "folder": str(files.folder),
        "overrides": command.options,
        "environment": dict(command.environment),
    }


def write_settings(files: ArmFiles, framework: str, command: Command) -> None:
    """Write ``settings.json`` into the arm's folder."""
    write_atomically(files.settings, json.dumps(settings_of(files, framework, command), indent=2) + "\n")


def read_settings(files: ArmFiles) -> dict[str, Any] | None:
    """Return what :func:`write_settings` wrote, or None if the file is missing or unreadable."""
    try:
        found = json.loads(files.settings.read_text(encoding="utf-8"))
        return found if found["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def comparable(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the options and variables in one mapping, without what depends on the path of the run directory.

    The run directory becomes ``/the-run``, and the reward function of this package loses its folder. The module is left
    out: a test starts another one.
    """
    run_directory = str(Path(settings["folder"]).parent)
    found = {**settings["overrides"], **settings["environment"]}
    return {
        name: _VERIFIER.sub(MATH_REWARD.name, str(value).replace(run_directory, "/the-run"))
        for name, value in found.items()
        if name != _FROM_THE_PATH
    }
