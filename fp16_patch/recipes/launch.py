# SPDX-License-Identifier: Apache-2.0
"""Run a recipe: its arms one after the other, each a process of its own, each leaving its result behind."""

from __future__ import annotations

import dataclasses
import json
import platform
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from fp16_patch.duration import duration
from fp16_patch.folder_lock import alone
from fp16_patch.proof.report import versions
from fp16_patch.recipes import failure, orphans, planning, resuming, run_directory
from fp16_patch.recipes.command import Command, Job
from fp16_patch.recipes.loading import scale_of, text_of
from fp16_patch.recipes.progress import Progress
from fp16_patch.recipes.session import Session
from fp16_patch.recipes.signals import terminable, uninterrupted
from fp16_patch.recipes.trainers import TRAINERS

_POLL_S = 0.25


@dataclass(frozen=True)
class ArmResult:
    """How one arm ended. ``status`` is completed, failed, timed out or interrupted; ``started`` is UTC."""

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


def say_now(line: str) -> None:
    """Print without delay, also into a pipe."""
    print(line, flush=True)


def run_recipe(
    path: Path,
    out: Path,
    *,
    framework: str | None = None,
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    timeout_s: float | None = None,
    scale: str | None = None,
    resume: bool = False,
    check: bool = True,
    say: Callable[[str], None] = say_now,
    module: str | None = None,
    heartbeat_s: float = 15.0,
) -> list[ArmResult]:
    """Run ``arms`` (default: all) of the recipe at ``path`` into ``out``, and return how each of these runs ended.

    ``framework`` is one of the recipe's, by default its first; ``scale`` is paper or toy, by default the larger it has.
    ``overrides`` are further ``KEY=VALUE`` for every arm. ``timeout_s`` replaces the recipe's limit for one arm.
    Before anything is written the commands are composed against the framework's configuration, which takes seconds,
    unless ``check`` is false. ``module`` is started in place of the trainer. An arm that fails does not keep the next
    from running. An earlier run of an arm is set aside; with ``resume`` it is kept instead where it completed with the
    same settings, and the others start anew. Raises :class:`Fp16PatchError` before anything is started;
    KeyboardInterrupt after the running arm is cleaned up.
    """
    recipe, framework, chosen = planning.choose(path, framework, arms, overrides, scale)
    out = out.resolve()
    planned = planning.planned(recipe, framework, chosen, out, overrides, module)
    run_directory.check(out, recipe, framework, [job.files for job, _ in planned.values()])
    if check and module is None:  # a stand-in needs nothing
        planning.check_commands(recipe, framework, {arm: command for arm, (_, command) in planned.items()}, out, say)
    results = []
    with terminable(), alone(out):
        for arm in resuming.completed(out, {arm: command for arm, (_, command) in planned.items()}) if resume else []:
            say(f"{arm} has completed in {out} and is kept")
            del planned[arm]
        if not resume:
            run_directory.check_checkpoints(job.files for job, _ in planned.values())
        for name in recipe.arms:
            orphans.end_those_of(out / name, say)
        run_directory.keep_recipe(out, text_of(path, scale_of(path, recipe.scale)))
        for job, _ in planned.values():
            run_directory.fresh(job.files, say)
        run_directory.build_world(recipe, out, say)
        for job, command in planned.values():
            limit_s = timeout_s if timeout_s is not None else recipe.hardware.timeout_minutes * 60
            progress = Progress(
                job.files.log,
                job.files.metrics,
                say,
                phases=TRAINERS[framework].PHASES,
                total_steps=command.total_steps,
                heartbeat_s=heartbeat_s,
            )
            results.append(_run_arm(job, framework, command, progress, limit_s, say))
    return results


def _run_arm(
    job: Job, framework: str, command: Command, progress: Progress, timeout_s: float, say: Callable[[str], None]
) -> ArmResult:
    arm, files, shell = job.arm_name, job.files, command.as_shell()
    files.script.write_text(f"#!/usr/bin/env bash\n{shell}\n", encoding="utf-8")
    say(f"\n== {arm} ==\n{shell}\n\n  log: {files.log}\n  limit: {duration(timeout_s)}")
    started, start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    status = "interrupted"
    exit_code = None
    try:
        status, exit_code = _watch(command, files.log, progress, timeout_s)
    finally:
        seconds = time.monotonic() - start
        result = ArmResult(
            arm=arm,
            framework=framework,
            precision=job.arm.precision,
            status=status,
            exit_code=exit_code,
            error=_error(status, exit_code, timeout_s, progress.phase, files.log),
            started=started,
            seconds=round(seconds, 1),
            command=shell,
            versions={"python": platform.python_version(), **versions()},
        )
        unfinished = files.result.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n", encoding="utf-8")
        unfinished.rename(files.result)
        say(f"  {duration(seconds):>7}  {arm}: {status}")
        if result.error:
            say(f"\n{result.error}\n\n  whole log: {files.log}")
    return result


def _watch(command: Command, log: Path, progress: Progress, timeout_s: float) -> tuple[str, int]:
    """Start, show progress, end; whatever happens, nothing of it is left running."""
    deadline = time.monotonic() + timeout_s
    session = Session(command.arguments, command.environment, log)
    try:
        while (running := session.running()) and time.monotonic() < deadline:
            progress.update()
            session.note_new_shared_memory()
            time.sleep(_POLL_S)
    finally:
        with uninterrupted():
            exit_code = session.close()
    progress.update()
    if running:
        return "timed out", exit_code
    return ("completed" if exit_code == 0 else "failed"), exit_code


def _error(status: str, exit_code: int | None, timeout_s: float, phase: str, log: Path) -> str | None:
    if status == "completed":
        return None
    if status == "interrupted":
        return f"interrupted during: {phase}"
    if status == "timed out":
        head = f"not finished after {duration(timeout_s)}, stopped during: {phase}"
    elif exit_code is not None and exit_code < 0:
        head = f"killed by {signal.Signals(-exit_code).name} during: {phase}"
    else:
        head = f"exit code {exit_code} during: {phase}"
    return f"{head}\n{failure.reason(log)}"
