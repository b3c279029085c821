# SPDX-License-Identifier: Apache-2.0
"""Run a recipe: its arms one after the other, each a process of its own, each leaving its result behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from fp16_patch.errors import Fp16PatchError
from fp16_patch.proof.report import versions
from fp16_patch.recipes import failure
from fp16_patch.recipes.command import VERL_TRAINER, ArmFiles, Command, build_command
from fp16_patch.recipes.loading import load
from fp16_patch.recipes.overrides import key_value
from fp16_patch.recipes.progress import Progress, duration
from fp16_patch.recipes.schema import LAUNCHER_KEYS, Recipe
from fp16_patch.recipes.session import Session
from fp16_patch.recipes.signals import terminable, uninterrupted

if TYPE_CHECKING:
    from fp16_patch.toy import World

_POLL_S = 0.25
_NOTE_SHARED_MEMORY_EVERY_S = 10.0
_WORLD_SEED = 0


@dataclass(frozen=True)
class ArmResult:
    """How one arm ended. ``status`` is completed, failed, timed out or interrupted; ``started`` is UTC."""

    arm: str
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
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    timeout_s: float | None = None,
    say: Callable[[str], None] = say_now,
    module: str = VERL_TRAINER,
    heartbeat_s: float = 15.0,
) -> list[ArmResult]:
    """Run ``arms`` (default: all) of the recipe at ``path`` into ``out``, and return how each ended.

    ``overrides`` are further Hydra overrides for every arm. ``timeout_s`` replaces the recipe's limit for one arm.
    ``module`` is the trainer to start. An arm that fails does not keep the next from running. Raises
    :class:`Fp16PatchError` before anything is started; KeyboardInterrupt after the running arm is cleaned up.
    """
    recipe = load(path)
    _check_overrides(overrides)
    chosen = list(arms) or list(recipe.arms)
    for arm in chosen:
        if arm not in recipe.arms:
            raise Fp16PatchError(f"{recipe.name} has no arm {arm!r}", allowed=", ".join(recipe.arms))
    out = out.resolve()
    _claim(out, path, recipe)
    folders = {arm: _fresh(out / arm, say) for arm in chosen}
    world = _world(recipe, out, say)
    results = []
    for arm, files in folders.items():
        command = build_command(recipe, arm, files, world=world, overrides=overrides, module=module)
        limit_s = timeout_s or recipe.hardware.timeout_minutes * 60
        results.append(_run_arm(arm, recipe.arms[arm].precision, command, files, limit_s, say, heartbeat_s))
    return results


def _run_arm(
    arm: str,
    precision: str,
    command: Command,
    files: ArmFiles,
    timeout_s: float,
    say: Callable[[str], None],
    heartbeat_s: float,
) -> ArmResult:
    shell = command.as_shell()
    files.script.write_text(f"#!/usr/bin/env bash\n{shell}\n", encoding="utf-8")
    say(f"\n== {arm} ==\n{shell}\n\n  log: {files.log}\n  limit: {duration(timeout_s)}")
    progress = Progress(files.log, files.metrics, say, total_steps=command.total_steps, heartbeat_s=heartbeat_s)
    started, start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    status = "interrupted"
    exit_code = None
    try:
        status, exit_code = _watch(command, files.log, progress, timeout_s)
    finally:
        seconds = time.monotonic() - start
        result = ArmResult(
            arm=arm,
            precision=precision,
            status=status,
            exit_code=exit_code,
            error=_error(status, exit_code, timeout_s, progress.phase, files.log),
            started=started,
            seconds=round(seconds, 1),
            command=shell,
            versions={"python": platform.python_version(), **versions()},
        )
        files.result.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n", encoding="utf-8")
        say(f"  {duration(seconds):>7}  {arm}: {status}")
        if result.error:
            say(f"\n{result.error}\n\n  whole log: {files.log}")
    return result


def _watch(command: Command, log: Path, progress: Progress, timeout_s: float) -> tuple[str, int]:
    """Start, show progress, end; whatever happens, nothing of it is left running."""
    deadline = time.monotonic() + timeout_s
    next_note = 0.0
    with terminable():
        session = Session(command.arguments, command.environment, log)
        try:
            while (running := session.running()) and time.monotonic() < deadline:
                progress.update()
                if time.monotonic() >= next_note:
                    session.note_shared_memory()
                    next_note = time.monotonic() + _NOTE_SHARED_MEMORY_EVERY_S
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


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, _ = key_value(override)
        if "=" not in override:
            raise Fp16PatchError(f"the override {override!r} has no value", allowed="KEY=VALUE, in Hydra's syntax")
        if key in LAUNCHER_KEYS:
            raise Fp16PatchError(f"{override} sets {key}, which the launcher sets", next_step="remove it")


def _claim(out: Path, path: Path, recipe: Recipe) -> None:
    """Keep the recipe with its runs, so that they can be compared without it."""
    kept = out / "recipe.yaml"
    other = recipe.name
    with contextlib.suppress(Fp16PatchError, FileNotFoundError, NotADirectoryError):  # none yet, or of an older format
        other = load(kept).name
    if other != recipe.name:
        raise Fp16PatchError(f"{out} holds runs of the recipe {other!r}", next_step="choose another --out")
    text = path.read_text(encoding="utf-8")
    try:
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Fp16PatchError(f"--out {out}: {error.strerror}", next_step="choose a folder you can write to") from error


def _fresh(folder: Path, say: Callable[[str], None]) -> ArmFiles:
    """An empty folder for an arm. Replaces an earlier run of ours, but neither checkpoints nor foreign files."""
    files = ArmFiles(folder)
    if folder.exists() and any(folder.iterdir()):
        if not files.script.exists() or (folder / "checkpoints").exists():
            what = "checkpoints" if files.script.exists() else "files that are not ours"
            raise Fp16PatchError(f"{folder} holds {what}", next_step="choose another --out, or remove it")
        say(f"replacing the earlier run in {folder}")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return files


def _world(recipe: Recipe, out: Path, say: Callable[[str], None]) -> World | None:
    """Build the recipe's world in the run directory; one that is already there and unharmed is used again."""
    if recipe.world is None:
        return None
    from fp16_patch.toy import build  # loads torch

    say(f"the {recipe.world} world in {out / 'world'}")
    return build(out / "world", seed=_WORLD_SEED, progress=lambda line: say(f"  {line}"))
