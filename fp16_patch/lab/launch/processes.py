# SPDX-License-Identifier: Apache-2.0
"""Linux processes by id: which live, in which session, with which environment; and how they are ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
_LOOKS = 10
_WITHOUT: set[int] = set()
"""Processes whose environment stayed empty, at which one look is enough."""
_PR_SET_PDEATHSIG = 1


def living() -> list[int]:
    """All of this machine that are no zombies."""
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir(PROC))) if session(pid) is not None]


def session(pid: int) -> int | None:
    """The session of a living process."""
    try:
        # After "(name)": state, parent, process group, session. The name may hold spaces and brackets.
        state, _, _, found, *_ = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(found)


def environment(pid: int) -> list[bytes]:
    """``NAME=value`` as the process was started with; empty where it is gone, or somebody else's.

    It reads as empty too while the process becomes another program. That is soon over, and looked at again.
    """
    with contextlib.suppress(OSError):  # gone, or somebody else's
        for _ in range(1 if pid in _WITHOUT else _LOOKS):
            if (found := (PROC / str(pid) / "environ").read_bytes()) or not session(pid):  # the kernel's have session 0
                return found.split(b"\0")
            time.sleep(0.005)
        _WITHOUT.add(pid)
    return []


def end(members: Callable[[], list[int]], grace_s: float) -> None:
    """End every process that ``members`` tells, until it tells none; by force after ``grace_s`` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_s
        signalled: set[int] = set()
        while (there := members()) and time.monotonic() < deadline:
            for pid in set(there) - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled.update(there)
            time.sleep(0.05)


def end_with(parent: int) -> Callable[[], None]:
    """To be called in a child before it becomes its command: SIGTERM when ``parent`` is gone, however it went."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # gone already
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
