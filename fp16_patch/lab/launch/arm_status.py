# SPDX-License-Identifier: Apache-2.0
"""Where an arm stands that left no result which can be read: the launcher writes it at the end, and may be killed."""

from __future__ import annotations

from fp16_patch.lab.launch.command import ArmFiles

WORDS = {
    "running": "still runs",
    "unfinished": "has no result (it was killed, or runs on another machine)",
    "unreadable": "has a result.json that cannot be read",
}
"""Status of an arm -> what it does, in words."""


def standing(files: ArmFiles, *, logged: bool, in_use: bool) -> str:
    """One of ``WORDS``, or "not run". ``logged`` says that there are metrics, ``in_use`` that a launcher is at work.

    An arm logs its first step minutes after its start, at which the launcher keeps the command.
    """
    if files.result.exists():
        return "unreadable"
    if not logged and not files.script.exists():
        return "not run"
    return "running" if in_use else "unfinished"
