# SPDX-License-Identifier: Apache-2.0
"""Run a recipe: each arm is a process that writes its result; arms run at the same time if there are enough GPUs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fp16_patch.files import write_atomically
from fp16_patch.lab.arms.command import Job
from fp16_patch.lab.folder_lock import exclusive_lock
from fp16_patch.lab.launch import gpu_assignment, run_directory
from fp16_patch.lab.launch import resume as resuming
from fp16_patch.lab.launch.arm_process import ArmProcess, ArmResult
from fp16_patch.lab.launch.gpu_assignment import Environment
from fp16_patch.lab.launch.plan import make_plan
from fp16_patch.lab.launch.progress import Progress
from fp16_patch.lab.launch.signals import terminable, uninterrupted
from fp16_patch.lab.launch.supervisor import terminate_leftovers

_POLL_S = 0.25
_print_now = partial(print, flush=True)


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
    say: Callable[[str], None] = _print_now,
    module: str | None = None,
    heartbeat_s: float = 15.0,
) -> list[ArmResult]:
    """Run ``arms`` (default: all) of the recipe at ``path`` into ``out``, and return how each of these runs ended.

    ``framework`` is one of the recipe's, by default its first; ``scale`` is paper or toy, by default the larger it has.
    ``overrides`` are further ``KEY=VALUE`` for every arm. ``timeout_s`` replaces the recipe's limit for one arm.
    ``jobs`` arms run at a time, by default as many as this machine's GPUs hold (``gpu_assignment``).
    Before anything is written the commands are composed against the framework's configuration, which takes seconds,
    unless ``check`` is false. ``module`` is started in place of the trainer. After an arm that fails the next one runs.
    An earlier run of an arm is moved to ``earlier/``. With ``resume``, an arm that completed with the same settings is
    not run again, and the others start from their first step.

    Raises :class:`Fp16PatchError` before anything is started, and KeyboardInterrupt after the running arms have ended.
    """
    plan = make_plan(path, out, framework=framework, arms=arms, overrides=overrides, scale=scale, module=module)
    recipe, out, jobs_of_arms = plan.recipe, plan.out, dict(plan.jobs)
    run_directory.check(out, recipe, plan.framework, [job.files for job in plan.jobs.values()])
    if check and module is None:  # a stand-in needs nothing
        plan.check(say)
    environments = [Environment()]
    if module is None or jobs:
        needs = [plan.trainer.needs(command) for command in plan.commands.values()]
        environments = gpu_assignment.environments(recipe, needs, jobs)
    with terminable(), exclusive_lock(out):
        for arm in resuming.completed(plan) if resume else []:
            say(f"{arm} has completed in {out} and is kept")
            del jobs_of_arms[arm]
        if resume and not any(job.files.script.exists() for job in plan.jobs.values()):
            say(f"--resume: no arm has run in {out}; every arm starts from its first step")
        if not resume:
            run_directory.check_checkpoints(job.files for job in jobs_of_arms.values())
        for name in recipe.arms:
            terminate_leftovers(out / name, say)
        write_atomically(out / run_directory.RECIPE, plan.text)
        for job in jobs_of_arms.values():
            run_directory.make_empty(job.files, say)
        run_directory.build_toy_task(recipe, out, say)

        def start(job: Job, environment: Environment) -> ArmProcess:
            several = len(environments) > 1
            progress = Progress(
                job.files.log,
                job.files.metrics,
                (lambda line: say(f"{job.arm_name}: {line}")) if several else say,
                phases=plan.trainer.phases,
                total_steps=plan.commands[job.arm_name].total_steps,
                heartbeat_s=heartbeat_s,
            )
            limit_s = timeout_s if timeout_s is not None else recipe.hardware.timeout_minutes * 60
            return ArmProcess(plan, job, progress, limit_s, say, environment, len(environments) - 1)

        results = _run_all([partial(start, job) for job in jobs_of_arms.values()], environments)
        return sorted(results, key=lambda result: list(plan.jobs).index(result.arm))


def _run_all(
    starts: Sequence[Callable[[Environment], ArmProcess]], environments: Sequence[Environment]
) -> list[ArmResult]:
    """Run every arm to its end, as many at a time as there are ``environments``.

    An error from starting or ending one arm is raised after the others have ended. An interruption ends them all.
    """
    waiting, running = deque(starts), dict[int, ArmProcess]()
    results, errors, not_ended = list[ArmResult](), list[Exception](), list[ArmProcess]()
    try:
        while waiting or running:
            for i, environment in enumerate(environments):
                if waiting and i not in running:
                    try:
                        running[i] = waiting.popleft()(environment)
                    except Exception as error:
                        errors.append(error)
            time.sleep(_POLL_S)
            for i, arm in list(running.items()):
                if arm.poll():
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
                arm.terminate()
    if errors:
        raise errors[0]
    return results
