# SPDX-License-Identifier: Apache-2.0
"""Make a run directory ready: one recipe on one framework, an empty folder for each arm, the world they share.

No run is lost: what an arm left before is set aside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.files import write_atomically
from fp16_patch.lab.folder_lock import LOCK
from fp16_patch.lab.launch.command import EARLIER, WORLD, ArmFiles
from fp16_patch.lab.logs.runs import read_result, run_framework
from fp16_patch.lab.recipes.load import load
from fp16_patch.lab.recipes.schema import Recipe

_WORLD_SEED = 0


def check(out: Path, recipe: Recipe, framework: str, arms: Iterable[ArmFiles]) -> None:
    """Raises :class:`Fp16PatchError` when ``out`` holds runs of another recipe, on another framework, or what no run
    left where these arms would go."""
    for above in out.parents:
        if (above / "recipe.yaml").is_file() and (above / LOCK).is_file():
            raise Fp16PatchError(
                f"{out} lies in the run directory {above}", code="output-in-the-way", next_step="choose another --out"
            )
    kept = out / "recipe.yaml"
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


def keep_recipe(out: Path, text: str) -> None:
    """Keep the recipe with its runs, so that they can be compared without it."""
    write_atomically(out / "recipe.yaml", text)


def check_checkpoints(arms: Iterable[ArmFiles]) -> None:
    """Raises :class:`Fp16PatchError` where an arm's folder holds checkpoints."""
    for files in arms:
        if files.checkpoints.exists():
            raise Fp16PatchError(
                f"{files.folder} holds checkpoints",
                code="output-holds-checkpoints",
                next_step="choose another --out; or --resume, to keep the arms that completed, set this one aside with "
                "its checkpoints, and start it anew",
            )


def fresh(files: ArmFiles, say: Callable[[str], None]) -> None:
    """Make an empty folder for an arm, and set an earlier run aside."""
    folder = files.folder
    if folder.exists() and any(folder.iterdir()):
        more = "; it had completed: --resume keeps such a one in its place" if _completed(files) else ""
        say(f"the earlier run in {folder} is kept as {_set_aside(folder)}{more}")
    folder.mkdir(parents=True, exist_ok=True)


def _completed(files: ArmFiles) -> bool:
    return read_result(files).get("status") == "completed"


def _set_aside(folder: Path) -> Path:
    shelf = folder.parent / EARLIER
    shelf.mkdir(exist_ok=True)
    number = 1
    while (place := shelf / f"{folder.name}-{number}").exists():
        number += 1
    return folder.rename(place)


def build_world(recipe: Recipe, out: Path, say: Callable[[str], None]) -> None:
    """Build the recipe's world in the run directory; one that is already there and unharmed is used again."""
    if recipe.world is None:
        return
    from fp16_patch.lab.toy import TOY_TASKS, build

    say(f"the {recipe.world} world in {out / WORLD}")
    build(out / WORLD, _WORLD_SEED, lambda line: say(f"  {line}"), TOY_TASKS[recipe.world])
