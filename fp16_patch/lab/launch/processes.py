# SPDX-License-Identifier: Apache-2.0
"""Read the session and environment of Linux processes by id, and terminate them."""

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
"""Processes whose environment stayed empty: one look is enough for these."""
_PR_SET_PDEATHSIG = 1


def live_pids() -> list[int]:
    """Return the pids of all non-zombie processes of this machine."""
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir(PROC))) if session(pid) is not None]


def session(pid: int) -> int | None:
    """Return the session of a process, or None where it has ended or is a zombie."""
    try:
        # After "(name)": state, parent, process group, session. The name may hold spaces and brackets.
        state, _, _, found, *_ = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(found)


def environment(pid: int) -> list[bytes]:
    """Return ``NAME=value`` as the process was started with; empty where it has ended or belongs to another user.

    It also reads as empty for a moment while the process executes another program, so it is read several times.
    """
    with contextlib.suppress(OSError):  # ended, or another user's
        for _ in range(1 if pid in _WITHOUT else _LOOKS):
            if (found := (PROC / str(pid) / "environ").read_bytes()) or not session(pid):  # the kernel's have session 0
                return found.split(b"\0")
            time.sleep(0.005)
        _WITHOUT.add(pid)
    return []


def terminate(members: Callable[[], list[int]], grace_s: float) -> None:
    """Send SIGTERM to what ``members`` returns until it returns nothing; send SIGKILL after ``grace_s`` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_s
        signalled: set[int] = set()
        while (there := members()) and time.monotonic() < deadline:
            for pid in set(there) - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled.update(there)
            time.sleep(0.05)


def die_with_parent(parent: int) -> Callable[[], None]:
    """Return a function for ``preexec_fn``: the kernel sends the child SIGTERM when ``parent`` ends or is killed."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
