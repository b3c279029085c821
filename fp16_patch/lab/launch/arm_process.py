# SPDX-License-Identifier: Apache-2.0
"""Start the process of one arm, follow it, end it, and write its result."""

from __future__ import annotations

import dataclasses
import json
import platform
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from fp16_patch.files import write_atomically
from fp16_patch.lab.arms.command import Job
from fp16_patch.lab.arms.settings import write_settings
from fp16_patch.lab.duration import duration
from fp16_patch.lab.launch import failure
from fp16_patch.lab.launch.plan import Plan
from fp16_patch.lab.launch.progress import Progress
from fp16_patch.lab.launch.signals import uninterrupted
from fp16_patch.lab.launch.supervisor import Supervisor
from fp16_patch.report.precision_report import versions


@dataclass(frozen=True)
class ArmResult:
    """The result of one arm. ``status`` is completed, failed, timed out or interrupted; ``started`` is UTC.

    ``beside`` is the number of other arms that may have run at the same time.
    """

    arm: str
    framework: str
    precision: str
    status: str
    exit_code: int | None
    error: str | None
    started: str
    seconds: float
    command: str
    versions: dict[str, str]
    beside: int = 0


class ArmProcess:
    """A running arm. Call :meth:`poll` often, and :meth:`end` in any case: it leaves no process running."""

    def __init__(
        self,
        plan: Plan,
        job: Job,
        progress: Progress,
        limit_s: float,
        say: Callable[[str], None],
        environment: Mapping[str, str],
        beside: int,
    ) -> None:
        """Start the arm. ``environment`` names the GPUs of this machine that are its own."""
        command, files = plan.commands[job.arm_name], job.files
        self._job, self._files, self._framework, self._shell = job, files, plan.framework, command.as_shell()
        self._progress, self._limit_s, self._say, self._beside = progress, limit_s, say, beside
        self._result: ArmResult | None = None
        self._cut_off = False
        write_settings(files, plan.framework, command)
        files.script.write_text(f"#!/usr/bin/env bash\n{self._shell}\n", encoding="utf-8")
        say(f"\n== {job.arm_name} ==\n{self._shell}\n\n  log: {files.log}\n  limit: {duration(limit_s)}")
        for name, value in environment.items():
            say(f"  {name}={value}")
        self._started, self._start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
        self._supervisor = Supervisor(command.arguments, {**command.environment, **environment}, files.log)

    def poll(self) -> bool:
        """Print what is new, and return whether the arm still runs and has not reached its limit."""
        self._progress.update()
        self._supervisor.note_new_shared_memory()
        return self._supervisor.running() and time.monotonic() - self._start < self._limit_s

    def terminate(self) -> None:
        """Send SIGTERM without waiting, so that several arms end at the same time."""
        if self._result is None:
            self._cut_off = self._supervisor.running()
            self._supervisor.terminate()

    def end(self, *, interrupted: bool = False) -> ArmResult:
        """End what still runs, write the result and print it. A second call returns the same result."""
        if self._result is None:
            with uninterrupted():
                cut_off = self._cut_off or self._supervisor.running()
                exit_code = self._supervisor.close()
                self._progress.update()
                if cut_off:
                    status = "interrupted" if interrupted else "timed out"
                else:
                    status = "completed" if exit_code == 0 else "failed"
                self._result = self._make_result(status, exit_code)
                text = json.dumps(dataclasses.asdict(self._result), indent=2)
                write_atomically(self._files.result, f"{text}\n")
            self._say(f"  {duration(self._result.seconds):>7}  {self._result.arm}: {self._result.status}")
            if self._result.error:
                self._say(f"\n{self._result.error}\n\n  whole log: {self._files.log}")
        return self._result

    def _make_result(self, status: str, exit_code: int) -> ArmResult:
        return ArmResult(
            arm=self._job.arm_name,
            framework=self._framework,
            precision=self._job.arm.precision,
            status=status,
            exit_code=None if status == "interrupted" else exit_code,
            error=self._error(status, exit_code),
            started=self._started,
            seconds=round(time.monotonic() - self._start, 1),
            command=self._shell,
            versions={"python": platform.python_version(), **versions()},
            beside=self._beside,
        )

    def _error(self, status: str, exit_code: int) -> str | None:
        phase = self._progress.phase
        if status == "completed":
            return None
        if status == "interrupted":
            return f"interrupted during: {phase}"
        if status == "timed out":
            head = f"not finished after {duration(self._limit_s)}, stopped during: {phase}"
        elif exit_code < 0:
            head = f"killed by {signal.Signals(-exit_code).name} during: {phase}"
        else:
            head = f"exit code {exit_code} during: {phase}"
        return f"{head}\n{failure.reason(self._files.log)}"
