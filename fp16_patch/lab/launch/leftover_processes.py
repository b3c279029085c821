# SPDX-License-Identifier: Apache-2.0
"""Terminate the processes of an arm whose launcher was killed: they would write into the files of the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fp16_patch.lab.launch import processes
from fp16_patch.lab.launch.supervisor import MARK

_GRACE_S = 10.0


def terminate_leftovers(folder: Path, say: Callable[[str], None]) -> None:
    """Terminate the processes that write into an arm's folder. The caller holds the lock of the run directory."""
    if left := _leftovers(folder):
        say(f"{folder.name} still runs, and its launcher was killed: terminating its {len(left)} processes")
        processes.terminate(lambda: _leftovers(folder), _GRACE_S)


def _leftovers(folder: Path) -> list[int]:
    start, path = f"{MARK}=".encode(), str(folder.resolve()).encode()
    return processes.marked_processes(lambda word: word.startswith(start) and word.partition(b":")[2] == path)
