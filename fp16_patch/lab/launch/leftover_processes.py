# SPDX-License-Identifier: Apache-2.0
"""Terminate the processes of an arm whose launcher was killed: they would write into the files of the next run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fp16_patch.lab.launch import processes
from fp16_patch.lab.launch.supervisor import MARK

_GRACE_S = 10.0


def terminate_leftovers(folder: Path, say: Callable[[str], None]) -> None:
    """Terminate what writes into an arm's folder. The caller holds the lock of the run directory."""
    if left := _leftovers(folder):
        say(f"{folder.name} still runs, and its launcher was killed: terminating its {len(left)} processes")
        processes.terminate(lambda: _leftovers(folder), _GRACE_S)


def _leftovers(folder: Path) -> list[int]:
    # By session: a process that renames itself overwrites its environment.
    start, of_folder = f"{MARK}=".encode(), str(folder.resolve()).encode()
    sessions = {
        processes.session(pid)
        for pid in processes.live_pids()
        if any(word.startswith(start) and word.partition(b":")[2] == of_folder for word in processes.environment(pid))
    }
    return [pid for pid in processes.live_pids() if processes.session(pid) in sessions - {None, os.getsid(0)}]
