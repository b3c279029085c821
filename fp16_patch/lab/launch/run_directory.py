# SPDX-License-Identifier: Apache-2.0
"""Prepare a run directory: one recipe on one framework, an empty folder for each arm, the toy task they share.

Results are never overwritten: an earlier run of an arm moves to ``earlier/``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import EARLIER, WORLD, ArmFiles
from fp16_patch.lab.folder_lock import LOCK
from fp16_patch.lab.loading.load import load
from fp16_patch.lab.logs.runs import read_result, run_framework
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.toy import TOY_TASKS, build

RECIPE = "recipe.yaml"
"""The recipe, kept with its runs so that they can be compared without the original file."""
_TOY_TASK_SEED = 0


def check(out: Path, recipe: Recipe, framework: str, arms: Iterable[ArmFiles]) -> None:
    """Raise :class:`Fp16PatchError` when ``out`` holds runs of another recipe or framework, or other files."""
    kept = out / RECIPE
    in_the_way = [
        f"{out} is inside the run directory {above}"
        for above in out.parents
        if (above / RECIPE).is_file() and (above / LOCK).is_file()
    ]
    if kept.exists() and not (out / LOCK).exists() and not any(out.glob("*/command.sh")):
        in_the_way.append(f"{kept} was there before any run")
    in_the_way += [
        f"{files.folder} holds files that no run wrote"
        for files in arms
        if files.folder.exists() and any(files.folder.iterdir()) and not files.script.exists()
    ]
    if in_the_way:
        raise Fp16PatchError("; ".join(in_the_way), code="output-in-the-way", next_step="choose another --out")
    other, there = recipe.name, framework
    with contextlib.suppress(Fp16PatchError, FileNotFoundError, NotADirectoryError):  # none yet, or of an older format
        old = load(kept)
        other, there = old.name, run_framework(out, old)
    if (other, there) != (recipe.name, framework):
        what = f"{out} holds runs of the recipe {other!r} on {there}"
        raise Fp16PatchError(what, code="output-of-other-recipe", next_step="choose another --out")


def check_checkpoints(arms: Iterable[ArmFiles]) -> None:
    """Raise :class:`Fp16PatchError` if an arm's folder holds checkpoints."""
    for files in arms:
        if files.checkpoints.exists():
            raise Fp16PatchError(
                f"{files.folder} holds checkpoints",
                code="output-holds-checkpoints",
                next_step="choose another --out; or --resume, which keeps the arms that completed, moves this one with "
                "its checkpoints to earlier/, and runs it from the start",
            )


def make_empty(files: ArmFiles, say: Callable[[str], None]) -> None:
    """Make an empty folder for an arm, and move an earlier run to ``earlier/``."""
    folder, completed = files.folder, read_result(files).get("status") == "completed"
    if folder.exists() and any(folder.iterdir()):
        numbers = itertools.count(1)
        place = next(p for n in numbers if not (p := folder.parent / EARLIER / f"{folder.name}-{n}").exists())
        place.parent.mkdir(exist_ok=True)
        folder.rename(place)
        more = "; it had completed: --resume would have kept it in its place" if completed else ""
        say(f"the earlier run in {folder} is kept as {place}{more}")
    folder.mkdir(parents=True, exist_ok=True)


def build_toy_task(recipe: Recipe, out: Path, say: Callable[[str], None]) -> None:
    """Build the recipe's toy task in the run directory; one that is there and intact is used again."""
    if recipe.world is not None:
        say(f"the toy task {recipe.world} in {out / WORLD}")
        build(out / WORLD, _TOY_TASK_SEED, lambda line: say(f"  {line}"), TOY_TASKS[recipe.world])
