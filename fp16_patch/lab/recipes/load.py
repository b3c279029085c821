# SPDX-License-Identifier: Apache-2.0
"""Find recipes, read and validate them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.recipes import compose
from fp16_patch.lab.recipes.builtin import folder
from fp16_patch.lab.recipes.parse import build
from fp16_patch.lab.recipes.schema import SCALES, Recipe
from fp16_patch.lab.recipes.validate import validate
from fp16_patch.lab.trainers import TRAINERS


def available() -> list[Path]:
    """The shipped recipe files, by name."""
    return sorted(folder().glob("*.yaml"), key=lambda path: path.stem)


def find(name_or_path: str) -> Path:
    """The file of a shipped recipe, or the given path itself. Raises :class:`Fp16PatchError` when there is none."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise Fp16PatchError(f"no recipe file {name_or_path}", code="recipe-not-found", next_step="check the path")
    named = {candidate.stem: candidate for candidate in available()}
    if name_or_path not in named:
        raise Fp16PatchError(
            f"no recipe named {name_or_path!r}",
            code="recipe-not-found",
            allowed=", ".join(named) + ", or the path of a .yaml file",
            next_step="fp16-patch recipes list",
        )
    return named[name_or_path]


def load(path: Path, scale: str | None = None) -> Recipe:
    """Read and validate one recipe, with its toy section, or as one of its scales.

    Raises :class:`Fp16PatchError` naming the file and every key that is wrong.
    """
    content = compose.composed(path, folder())
    recipe = _built(content, path.name)
    if recipe.toy is not None:
        _built(compose.at_scale(content, "toy"), f"{path.name} at toy scale")
    return recipe if scale is None else _built(compose.at_scale(content, scale), path.name)


def scales(path: Path) -> tuple[str, ...]:
    """The scales it runs at: both where it has a toy section, else the one it is written for."""
    recipe = load(path)
    if recipe.toy is not None:
        return SCALES
    return ("toy",) if recipe.world else ("paper",)


def scale_of(path: Path, wanted: str | None) -> str:
    """The wanted scale, or without one the larger there is. Raises :class:`Fp16PatchError` if it lacks that."""
    has = scales(path)
    if wanted is not None and wanted not in has:
        raise Fp16PatchError(f"{path.stem} has no {wanted} scale", code="unknown-scale", allowed=", ".join(has))
    return wanted or has[0]


def text_of(path: Path, scale: str) -> str:
    """What a run of the recipe at this scale keeps: a recipe by itself, the file as it is where it is that already."""
    content = compose.composed(path, folder())
    chosen = compose.at_scale(content, scale)
    as_it_is = chosen == compose.read(path)
    return path.read_text(encoding="utf-8") if as_it_is else compose.as_text(chosen, f"{path.name}, {scale} scale")


def _built(content: Any, source: str) -> Recipe:
    recipe = build(Recipe, content, source=source)
    frameworks = tuple(key for key in content if key in TRAINERS and getattr(recipe, key))
    recipe = dataclasses.replace(recipe, frameworks=frameworks)
    validate(recipe, source=source)
    return recipe
