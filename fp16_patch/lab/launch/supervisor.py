# SPDX-License-Identifier: Apache-2.0
"""One training run as a Linux session: started apart from us, found again, and ended without trace.

Ray gives each worker a process group of its own, so killing the trainer's group would leave them running. They stay
in its session, which is therefore the unit here. Whatever leaves even the session still carries our mark in its
environment. Nothing else is ever signalled.

Where we are killed, and so cannot end it, the kernel tells the command (``SIGTERM``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from fp16_patch import envs
from fp16_patch.lab.launch import processes

MARK = envs.RECIPE_RUN
"""Variable of every process of a run: which one it is, and the folder it writes into."""

_SHARED_MEMORY = Path("/dev/shm")


class Session:
    """A running command, its descendants, and what they leave in shared memory and temporary files."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start ``arguments`` with ``environment`` added to ours; stdout and stderr go to ``log``, beside the results.

        Ray gets a temporary directory of its own with a short path: its sockets live there, and the path of a
        socket has at most 107 characters. It is that of ``environment`` where there is one.
        """
        mark = f"{uuid.uuid4().hex}:{log.parent.resolve()}"
        self._mark = f"{MARK}={mark}".encode()
        self._shared_memory: set[Path] = set()
        self._names_before: set[str] = set()
        self._mapping_may_follow = False
        self._started = time.time()
        self.ray_directory = Path(environment.get("RAY_TMPDIR") or tempfile.mkdtemp(prefix="fp16p"))
        self.ray_directory.mkdir(exist_ok=True)
        own = {"PYTHONUNBUFFERED": "1", MARK: mark}
        # TMPDIR too: vLLM's sockets and whatever else goes to /tmp are then removed with Ray's.
        own |= dict.fromkeys(("RAY_TMPDIR", "TMPDIR"), str(self.ray_directory))
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    list(arguments),
                    env={**os.environ, **environment, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=processes.end_with(os.getpid()),
                )
        except BaseException:
            shutil.rmtree(self.ray_directory, ignore_errors=True)
            raise

    def running(self) -> bool:
        """Whether the command itself still runs. Leaves it unreaped: its id names the session until we close it."""
        if self._process.returncode is not None:  # closed
            return False
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def members(self) -> list[int]:
        """The ids of our living processes."""
        leader = self._process.pid
        return [
            pid
            for pid in processes.living()
            if processes.session(pid) == leader or self._mark in processes.environment(pid)
        ]

    def note_new_shared_memory(self) -> None:
        """As :meth:`note_shared_memory`, and cheap, where a name has come since the call before. Call it often."""
        names = set(os.listdir(_SHARED_MEMORY))
        new, self._names_before = names - self._names_before, names
        if new or self._mapping_may_follow:
            self.note_shared_memory()
        self._mapping_may_follow = bool(new)

    def note_shared_memory(self) -> None:
        """Remember what our processes have mapped: once they are dead nothing tells whose it was."""
        inodes: set[int] = set()
        for pid in self.members():
            with contextlib.suppress(OSError):
                for line in (processes.PROC / str(pid) / "maps").read_text().splitlines():
                    if f" {_SHARED_MEMORY}/" in line:
                        inodes.add(int(line.split()[4]))
        # By inode: a semaphore is mapped under a name of which nothing is left, and renamed then.
        for entry in os.scandir(_SHARED_MEMORY):
            if entry.inode() in inodes:
                self._shared_memory.add(Path(entry.path))

    def ask_to_end(self) -> None:
        """SIGTERM to every member; :meth:`close` waits for them."""
        self.note_shared_memory()
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def close(self, grace_s: float = 5.0) -> int:
        """End every member, by force after ``grace_s`` seconds, remove what they left, return the exit code."""
        self.note_shared_memory()
        processes.end(self.members, grace_s)
        exit_code = self._process.wait(timeout=grace_s)
        for path in self._shared_memory:
            with contextlib.suppress(OSError):
                if path.stat().st_ctime >= self._started - 1:
                    path.unlink()
        shutil.rmtree(self.ray_directory, ignore_errors=True)
        return exit_code
