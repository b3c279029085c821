# SPDX-License-Identifier: Apache-2.0
"""Run one training command as a Linux session, and end all its processes.

Ray gives each worker a process group of its own, so killing the trainer's group would leave them running. They stay
in its session. A process that leaves the session still has a mark in its environment. No other process is signalled.
If the launcher is killed, the kernel sends the command SIGTERM.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fp16_patch import envs
from fp16_patch.lab.launch import processes

_MARK = envs.RECIPE_RUN
"""Variable of every process of a run: an id of the run, and the folder that it writes into."""
_GRACE_S = 10.0
_SHARED_MEMORY = Path("/dev/shm")


def terminate_leftovers(folder: Path, say: Callable[[str], None]) -> None:
    """Terminate the processes of an arm whose launcher was killed: they would write into the files of the next run.

    The caller holds the lock of the run directory.
    """

    def leftovers() -> list[int]:
        start, path = f"{_MARK}=".encode(), str(folder.resolve()).encode()
        return processes.marked_processes(lambda word: word.startswith(start) and word.partition(b":")[2] == path)

    if left := leftovers():
        say(f"{folder.name} still runs, and its launcher was killed: terminating its {len(left)} processes")
        processes.terminate(leftovers, _GRACE_S)


class Supervisor:
    """A running command, its descendants, and their files in shared memory and in the temporary folder."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start ``arguments`` with ``environment`` added to this process's; stdout and stderr go to ``log``.

        Ray gets its own temporary directory with a short path, since the path of a socket has at most 107 characters.
        ``RAY_TMPDIR`` in ``environment`` names another one.
        """
        mark = f"{uuid.uuid4().hex}:{log.parent.resolve()}"
        self._mark = f"{_MARK}={mark}".encode()
        self._shared_memory: set[Path] = set()
        self._names_before: set[str] = set()
        self._mapping_may_follow = False
        self._started = time.time()
        self.ray_directory = Path(environment.get("RAY_TMPDIR") or tempfile.mkdtemp(prefix="fp16p"))
        self.ray_directory.mkdir(exist_ok=True)
        own = {"PYTHONUNBUFFERED": "1", _MARK: mark}
        # TMPDIR too, so that vLLM's sockets and other temporary files are removed with Ray's.
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
                    preexec_fn=processes.die_with_parent(os.getpid()),
                )
        except BaseException:
            shutil.rmtree(self.ray_directory, ignore_errors=True)
            raise

    def running(self) -> bool:
        """Return whether the command itself still runs. It is not reaped: its id names the session until ``close``."""
        if self._process.returncode is not None:  # closed
            return False
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def members(self) -> list[int]:
        """Return the pids of the command and its descendants."""
        return processes.marked_processes(self._mark.__eq__, leader=self._process.pid)

    def note_new_shared_memory(self) -> None:
        """Call :meth:`note_shared_memory` if there is a new name since the last call. This is cheap."""
        names = set(os.listdir(_SHARED_MEMORY))
        new, self._names_before = names - self._names_before, names
        if new or self._mapping_may_follow:
            self.note_shared_memory()
        self._mapping_may_follow = bool(new)

    def note_shared_memory(self) -> None:
        """Record the shared memory that the processes have mapped. After they end, its owner cannot be found."""
        inodes: set[int] = set()
        for pid in self.members():
            with contextlib.suppress(OSError):
                for line in (processes.PROC / str(pid) / "maps").read_text().splitlines():
                    if f" {_SHARED_MEMORY}/" in line:
                        inodes.add(int(line.split()[4]))
        # By inode: a semaphore is mapped under a temporary name and then renamed.
        for entry in os.scandir(_SHARED_MEMORY):
            if entry.inode() in inodes:
                self._shared_memory.add(Path(entry.path))

    def terminate(self) -> None:
        """Send SIGTERM to every process; :meth:`close` waits for them."""
        self.note_shared_memory()
        processes.send(self.members(), signal.SIGTERM)

    def close(self, grace_s: float = 5.0) -> int:
        """End every process, with SIGKILL after ``grace_s`` seconds, remove their files, and return the exit code."""
        self.note_shared_memory()
        processes.terminate(self.members, grace_s)
        exit_code = self._process.wait(timeout=grace_s)
        for path in self._shared_memory:
            with contextlib.suppress(OSError):
                if path.stat().st_ctime >= self._started - 1:
                    path.unlink()
        shutil.rmtree(self.ray_directory, ignore_errors=True)
        return exit_code
