# SPDX-License-Identifier: Apache-2.0
"""Run a recipe: each arm a process of its own that leaves its result behind, side by side where there is room."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fp16_patch.lab.folder_lock import alone
from fp16_patch.lab.launch import gpu_assignment, leftover_processes, plan, run_directory
from fp16_patch.lab.launch import resume as resuming
from fp16_patch.lab.launch.arm_process import ArmResult, Running
from fp16_patch.lab.launch.command import Command, Job
from fp16_patch.lab.launch.gpu_assignment import Place
from fp16_patch.lab.launch.progress import Progress
from fp16_patch.lab.launch.signals import terminable, uninterrupted
from fp16_patch.lab.recipes.load import scale_of, text_of
from fp16_patch.lab.trainers import TRAINERS

_POLL_S = 0.25


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
    jobs: int | None = None,
    check: bool = True,
    say: Callable[[str], None] = say_now,
    module: str | None = None,
    heartbeat_s: float = 15.0,
) -> list[ArmResult]:
    """Run ``arms`` (default: all) of the recipe at ``path`` into ``out``, and return how each of these runs ended.

    ``framework`` is one of the recipe's, by default its first; ``scale`` is paper or toy, by default the larger it has.
    ``overrides`` are further ``KEY=VALUE`` for every arm. ``timeout_s`` replaces the recipe's limit for one arm.
    ``jobs`` arms run at a time, by default as many as this machine's GPUs hold (``gpu_assignment``).
    Before anything is written the commands are composed against the framework's configuration, which takes seconds,
    unless ``check`` is false. ``module`` is started in place of the trainer. An arm that fails does not keep the next
    from running. An earlier run of an arm is set aside; with ``resume`` it is kept instead where it completed with the
    same settings, and the others start anew. Raises :class:`Fp16PatchError` before anything is started;
    KeyboardInterrupt after the running arms are cleaned up.
    """
    recipe, framework, chosen = plan.choose(path, framework, arms, overrides, scale)
    out = out.resolve()
    planned = plan.planned(recipe, framework, chosen, out, overrides, module)
    commands = {arm: command for arm, (_, command) in planned.items()}
    run_directory.check(out, recipe, framework, [job.files for job, _ in planned.values()])
    if check and module is None:  # a stand-in needs nothing
        plan.check_commands(recipe, framework, commands, out, say)
    places = [Place()]
    if module is None or jobs:
        needs = [TRAINERS[framework].needs(command) for command in commands.values()]
        places = gpu_assignment.places(recipe, needs, jobs)
    with terminable(), alone(out):
        for arm in resuming.completed(out, commands) if resume else []:
            say(f"{arm} has completed in {out} and is kept")
            del planned[arm]
        if not resume:
            run_directory.check_checkpoints(job.files for job, _ in planned.values())
        for name in recipe.arms:
            leftover_processes.end_those_of(out / name, say)
        run_directory.keep_recipe(out, text_of(path, scale_of(path, recipe.scale)))
        for job, _ in planned.values():
            run_directory.fresh(job.files, say)
        run_directory.build_world(recipe, out, say)
        beside = len(places) - 1

        def start(job: Job, command: Command, place: Place) -> Running:
            progress = Progress(
                job.files.log,
                job.files.metrics,
                say if not beside else lambda line: say(f"{job.arm_name}: {line}"),
                phases=TRAINERS[framework].PHASES,
                total_steps=command.total_steps,
                heartbeat_s=heartbeat_s,
            )
            limit_s = timeout_s if timeout_s is not None else recipe.hardware.timeout_minutes * 60
            return Running(job, framework, command, progress, limit_s, say, place, beside)

        results = _side_by_side([partial(start, *one) for one in planned.values()], places)
        return sorted(results, key=lambda result: list(planned).index(result.arm))


def _side_by_side(starts: Sequence[Callable[[Place], Running]], places: Sequence[Place]) -> list[ArmResult]:
    """Run every arm to its end, as many at a time as there are ``places``.

    What goes wrong with starting or ending one is raised once the others have ended. An interruption ends them all.
    """
    waiting, running = deque(starts), dict[int, Running]()
    results, errors, not_ended = list[ArmResult](), list[Exception](), list[Running]()
    try:
        while waiting or running:
            for i, place in enumerate(places):
                if waiting and i not in running:
                    try:
                        running[i] = waiting.popleft()(place)
                    except Exception as error:
                        errors.append(error)
            time.sleep(_POLL_S)
            for i, arm in list(running.items()):
                if arm.goes_on():
                    continue
                try:
                    results.append(arm.end())
                except Exception as error:
                    errors.append(error)
                    not_ended.append(arm)
                del running[i]
    finally:
        with uninterrupted(), ExitStack() as ending:
            for arm in (*running.values(), *not_ended):
                ending.callback(arm.end, interrupted=True)
            for arm in running.values():
                arm.ask_to_end()
    if errors:
        raise errors[0]
    return results
