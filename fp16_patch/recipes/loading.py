# SPDX-License-Identifier: Apache-2.0
"""Find recipes, read their YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fp16_patch.errors import Fp16PatchError
from fp16_patch.recipes.schema import Recipe
from fp16_patch.recipes.strict import build
from fp16_patch.recipes.trainers import TRAINERS
from fp16_patch.recipes.validation import validate


def folder() -> Path:
    """Where the shipped recipes are: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    in_wheel, in_checkout = package / "data", package.parents[1] / "recipes"
    for place in (in_wheel, in_checkout):
        if any(place.glob("*.yaml")):
            return place
    raise Fp16PatchError(
        f"no recipes in {in_wheel} or {in_checkout}", next_step="reinstall fp16-patch, or give the path of a recipe"
    )


def available() -> list[Path]:
    """The shipped recipe files, by name."""
    return sorted(folder().glob("*.yaml"))


def find(name_or_path: str) -> Path:
    """The file of a shipped recipe, or the given path itself. Raises :class:`Fp16PatchError` when there is none."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise Fp16PatchError(f"no recipe file {name_or_path}", next_step="check the path")
    named = {candidate.stem: candidate for candidate in available()}
    if name_or_path not in named:
        raise Fp16PatchError(
            f"no recipe named {name_or_path!r}",
            allowed=", ".join(named) + ", or the path of a .yaml file",
            next_step="fp16-patch recipes list",
        )
    return named[name_or_path]


def load(path: Path) -> Recipe:
    """Read and validate one recipe. Raises :class:`Fp16PatchError` naming the file and every key that is wrong."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Fp16PatchError(f"{path} is not readable as YAML: {error}") from error
    recipe = build(Recipe, content, source=path.name)
    frameworks = tuple(key for key in content if key in TRAINERS and getattr(recipe, key))
    recipe = dataclasses.replace(recipe, frameworks=frameworks)
    validate(recipe, source=path.name)
    return recipe


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-6 is a number (YAML 1.1 makes it text), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
