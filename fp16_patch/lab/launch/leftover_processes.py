# SPDX-License-Identifier: Apache-2.0
"""What still runs of an arm whose launcher was killed: it would write into the files of the next run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fp16_patch.lab.launch import processes
from fp16_patch.lab.launch.supervisor import MARK

_GRACE_S = 10.0


def end_those_of(folder: Path, say: Callable[[str], None]) -> None:
    """End what writes into an arm's folder. To be called with the lock of the run directory: its launcher is dead."""
    if left := _of(folder):
        say(f"{folder.name} still runs, and its launcher was killed: ending its {len(left)} processes")
        processes.end(lambda: _of(folder), _GRACE_S)


def _of(folder: Path) -> list[int]:
    """By session: processes that rename themselves write over their environment."""
    start, of_folder = f"{MARK}=".encode(), str(folder.resolve()).encode()
    sessions = {
        processes.session(pid)
        for pid in processes.living()
        if any(word.startswith(start) and word.partition(b":")[2] == of_folder for word in processes.environment(pid))
    }
    return [pid for pid in processes.living() if processes.session(pid) in sessions - {None, os.getsid(0)}]
