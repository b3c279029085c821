# SPDX-License-Identifier: Apache-2.0
"""Prepare a run directory: one recipe on one framework, an empty folder for each arm, the world they share.

Results are never overwritten: an earlier run of an arm moves to ``earlier/``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import EARLIER, WORLD, ArmFiles
from fp16_patch.lab.folder_lock import LOCK
from fp16_patch.lab.loading.load import load
from fp16_patch.lab.logs.runs import read_result, run_framework
from fp16_patch.lab.recipes.schema import Recipe

RECIPE = "recipe.yaml"
"""The recipe, kept with its runs so that they can be compared without the original file."""
_WORLD_SEED = 0


def check(out: Path, recipe: Recipe, framework: str, arms: Iterable[ArmFiles]) -> None:
    """Raise :class:`Fp16PatchError` when ``out`` holds runs of another recipe or framework, or other files."""
    for above in out.parents:
        if (above / RECIPE).is_file() and (above / LOCK).is_file():
            raise Fp16PatchError(
                f"{out} lies in the run directory {above}", code="output-in-the-way", next_step="choose another --out"
            )
    kept = out / RECIPE
    if kept.exists() and not (out / LOCK).exists() and not any(out.glob("*/command.sh")):
        raise Fp16PatchError(
            f"{kept} was there before any run", code="output-in-the-way", next_step="choose another --out"
        )
    for files in arms:
        if files.folder.exists() and any(files.folder.iterdir()) and not files.script.exists():
            raise Fp16PatchError(
                f"{files.folder} holds files that are not ours",
                code="output-in-the-way",
                next_step="choose another --out",
            )
    other, there = recipe.name, framework
    with contextlib.suppress(Fp16PatchError, FileNotFoundError, NotADirectoryError):  # none yet, or of an older format
        old = load(kept)
        other, there = old.name, run_framework(out, old)
    if (other, there) != (recipe.name, framework):
        raise Fp16PatchError(
            f"{out} holds runs of the recipe {other!r} on {there}",
            code="output-of-other-recipe",
            next_step="choose another --out",
        )


def check_checkpoints(arms: Iterable[ArmFiles]) -> None:
    """Raise :class:`Fp16PatchError` where an arm's folder holds checkpoints."""
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
    folder = files.folder
    if folder.exists() and any(folder.iterdir()):
        more = "; it had completed: --resume would have kept it in its place" if _completed(files) else ""
        say(f"the earlier run in {folder} is kept as {_move_to_earlier(folder)}{more}")
    folder.mkdir(parents=True, exist_ok=True)


def _completed(files: ArmFiles) -> bool:
    return read_result(files).get("status") == "completed"


def _move_to_earlier(folder: Path) -> Path:
    shelf = folder.parent / EARLIER
    shelf.mkdir(exist_ok=True)
    number = 1
    while (place := shelf / f"{folder.name}-{number}").exists():
        number += 1
    return folder.rename(place)


def build_world(recipe: Recipe, out: Path, say: Callable[[str], None]) -> None:
    """Build the recipe's world in the run directory; one that is there and intact is used again."""
    if recipe.world is None:
        return
    from fp16_patch.lab.toy import TOY_TASKS, build

    say(f"the {recipe.world} world in {out / WORLD}")
    build(out / WORLD, _WORLD_SEED, lambda line: say(f"  {line}"), TOY_TASKS[recipe.world])
