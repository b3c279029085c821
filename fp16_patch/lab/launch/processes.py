# SPDX-License-Identifier: Apache-2.0
"""Read the session and environment of Linux processes by id, and terminate them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PROC = Path("/proc")
_LOOKS = 10
_WITHOUT: set[int] = set()
"""Processes whose environment stayed empty: it is read only once."""
_PR_SET_PDEATHSIG = 1


def session(pid: int) -> int | None:
    """Return the session of a process, or None if it has ended or is a zombie."""
    try:
        # After "(name)": state, parent, process group, session. The name may hold spaces and brackets.
        state, _, _, found, *_ = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(found)


def environment(pid: int) -> list[bytes]:
    """Return ``NAME=value`` as the process was started with; empty if it has ended or belongs to another user.

    It also reads as empty for a moment while the process executes another program, so it is read several times.
    """
    with contextlib.suppress(OSError):  # ended, or another user's
        for _ in range(1 if pid in _WITHOUT else _LOOKS):
            if (found := (PROC / str(pid) / "environ").read_bytes()) or not session(pid):  # the kernel's have session 0
                return found.split(b"\0")
            time.sleep(0.005)
        _WITHOUT.add(pid)
    return []


def marked_processes(is_mark: Callable[[bytes], bool], leader: int | None = None) -> list[int]:
    """Return the pids of all sessions in which a process has a mark in its environment, and of the session ``leader``.

    The search is by session, since a process that renames itself overwrites its environment. The session of this
    process is left out.
    """
    by_pid = {pid: session(pid) for pid in map(int, filter(str.isdecimal, os.listdir(PROC)))}
    marked = {found for pid, found in by_pid.items() if found and any(map(is_mark, environment(pid)))}
    sessions = {*marked, leader} - {None, os.getsid(0)}
    return [pid for pid, found in by_pid.items() if found in sessions]


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each process that still runs."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def terminate(members: Callable[[], list[int]], grace_s: float) -> None:
    """Send SIGTERM to what ``members`` returns until it returns nothing; send SIGKILL after ``grace_s`` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_s
        signalled: set[int] = set()
        while (there := members()) and time.monotonic() < deadline:
            send(set(there) - signalled, number)
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
