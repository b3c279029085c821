# SPDX-License-Identifier: Apache-2.0
"""Make a run directory ready: one recipe on one framework, an empty folder for each arm, the world they share."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fp16_patch.errors import Fp16PatchError
from fp16_patch.recipes.command import ArmFiles
from fp16_patch.recipes.loading import load
from fp16_patch.recipes.runs import framework_of
from fp16_patch.recipes.schema import Recipe

if TYPE_CHECKING:
    from fp16_patch.toy import World

_WORLD_SEED = 0


def claim(out: Path, path: Path, recipe: Recipe, framework: str) -> None:
    """Keep the recipe with its runs, so that they can be compared without it."""
    kept = out / "recipe.yaml"
    other, there = recipe.name, framework
    with contextlib.suppress(Fp16PatchError, FileNotFoundError, NotADirectoryError):  # none yet, or of an older format
        old = load(kept)
        other, there = old.name, framework_of(out, old)
    if (other, there) != (recipe.name, framework):
        raise Fp16PatchError(f"{out} holds runs of the recipe {other!r} on {there}", next_step="choose another --out")
    text = path.read_text(encoding="utf-8")
    try:
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Fp16PatchError(f"--out {out}: {error.strerror}", next_step="choose a folder you can write to") from error


def fresh(folder: Path, say: Callable[[str], None]) -> ArmFiles:
    """An empty folder for an arm. Replaces an earlier run of ours, but neither checkpoints nor foreign files."""
    files = ArmFiles(folder)
    if folder.exists() and any(folder.iterdir()):
        if not files.script.exists() or files.checkpoints.exists():
            what = "checkpoints" if files.script.exists() else "files that are not ours"
            raise Fp16PatchError(f"{folder} holds {what}", next_step="choose another --out, or remove it")
        say(f"replacing the earlier run in {folder}")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return files


def world(recipe: Recipe, out: Path, say: Callable[[str], None]) -> World | None:
    """Build the recipe's world in the run directory; one that is already there and unharmed is used again."""
    if recipe.world is None:
        return None
    from fp16_patch.toy import build  # loads torch

    say(f"the {recipe.world} world in {out / 'world'}")
    return build(out / "world", seed=_WORLD_SEED, progress=lambda line: say(f"  {line}"))
