# SPDX-License-Identifier: Apache-2.0
"""Find recipes, read and validate them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.loading.validate import validate
from fp16_patch.lab.recipes import compose
from fp16_patch.lab.recipes.builtin import folder
from fp16_patch.lab.recipes.parse import build
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.lab.trainers import TRAINERS


def available() -> list[Path]:
    """Return the shipped recipe files, sorted by name."""
    return sorted(folder().glob("*.yaml"), key=lambda path: path.stem)


def find(name_or_path: str) -> Path:
    """Return the file of a shipped recipe, or the path itself. Raises :class:`Fp16PatchError` if there is none."""
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
    if scale is not None:
        return load_at_scale(path, scale)[0]
    content = compose.composed(path, folder())
    recipe = _built(content, path.name)
    if recipe.toy is not None:
        _built(compose.at_scale(content, "toy"), f"{path.name} at toy scale")
    return recipe


def load_at_scale(path: Path, scale: str | None = None) -> tuple[Recipe, str]:
    """Return the recipe at ``scale``, by default the larger it has, and the YAML text that a run keeps of it.

    The text is a recipe by itself: the file as it is, or the file with what it extends and its scale filled in.
    Raises :class:`Fp16PatchError` if the recipe is wrong or does not have that scale.
    """
    has = load(path).scales
    if scale not in (None, *has):
        raise Fp16PatchError(
            f"{path.stem} has no {scale} scale",
            code="unknown-scale",
            allowed=", ".join(has),
            next_step=f"--scale {has[0]}, or leave --scale out",
        )
    scale = scale or has[0]
    content = compose.at_scale(compose.composed(path, folder()), scale)
    unchanged = content == compose.read(path)
    text = path.read_text(encoding="utf-8") if unchanged else compose.as_text(content, f"{path.name}, {scale} scale")
    return _built(content, path.name), text


def _built(content: Any, source: str) -> Recipe:
    recipe = build(Recipe, content, source=source)
    frameworks = tuple(key for key in content if key in TRAINERS and getattr(recipe, key))
    recipe = dataclasses.replace(recipe, frameworks=frameworks)
    validate(recipe, source=source)
    return recipe
