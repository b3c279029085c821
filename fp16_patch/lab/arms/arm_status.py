# SPDX-License-Identifier: Apache-2.0
"""Tell the status of an arm without a readable result: the launcher writes it at the end, and may be killed before."""

from __future__ import annotations

from fp16_patch.lab.arms.command import ArmFiles

WORDS = {
    "running": "still runs",
    "unfinished": "has no result (it was killed, or runs on another machine)",
    "unreadable": "has a result.json that cannot be read",
}
"""Each status with its meaning, as the end of a sentence about the arm."""


def arm_status(files: ArmFiles, *, logged: bool, locked: bool) -> str:
    """Return a key of ``WORDS``, or "not run".

    ``logged`` says that there are metrics, ``locked`` that a launcher holds the lock of the run directory. An arm logs
    its first step minutes after its start, but the launcher writes its command at the start.
    """
    if files.result.exists():
        return "unreadable"
    if not logged and not files.script.exists():
        return "not run"
    return "running" if locked else "unfinished"
