# SPDX-License-Identifier: Apache-2.0
"""Compose one mapping from a recipe's file, the shared files it extends, and a scale."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.recipes.schema import Recipe

_REPLACED = ("model", "data", "hardware", "platform", "world")
_OF_THE_PAPER = ("published", "expected")
_FRAMEWORKS = ("verl", "openrlhf")
_ORDER = [field.name for field in dataclasses.fields(Recipe)]


def read(path: Path) -> Any:
    """Return the parsed YAML of one file. Raises :class:`Fp16PatchError` when it is not YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Fp16PatchError(
            f"{path} is not readable as YAML: {error}", code="recipe-unreadable", next_step=f"correct {path.name}"
        ) from error


def composed(path: Path, shared: Path, extended_by: tuple[Path, ...] = ()) -> Any:
    """Return the recipe with what it ``extends`` filled in; its own keys win, then those of earlier shared files.

    Shared files are searched in the recipe's folder, then in ``shared``, and may extend others. Raises
    :class:`Fp16PatchError` if one is missing or extends itself.
    """
    content = read(path)
    if not isinstance(content, dict) or "extends" not in content:
        return content
    names = content.pop("extends")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        what = f"{path.name}: extends={names!r} has the wrong type"
        raise Fp16PatchError(what, code="wrong-type", allowed="a list of names", next_step="extends: [NAME]")
    for name in names:
        found = [place for place in (path.parent / f"{name}.yaml", shared / f"{name}.yaml") if place.is_file()]
        if not found:
            known = sorted(str(file.relative_to(shared).with_suffix("")) for file in shared.glob("shared/*.yaml"))
            raise Fp16PatchError(
                f"{path.name}: extends {name!r}, which does not exist",
                code="recipe-not-found",
                allowed=", ".join(known),
                next_step=f"correct the name, or write {name}.yaml next to {path.name}",
            )
        above = (*extended_by, path.resolve())
        if found[0].resolve() in above:
            what = f"{path.name}: extends {name!r}, which extends it"
            raise Fp16PatchError(what, code="recipe-extends-itself", next_step="remove one of the two")
        content = merge(composed(found[0], shared, above), content)
    return {key: content[key] for key in dict.fromkeys((*_ORDER, *content)) if key in content}


def merge(under: Any, over: Any) -> Any:
    """Return ``under`` updated with ``over``, mappings key by key; null removes a key.

    A hyperparameter is replaced as a whole, with its source and note.
    """
    if not isinstance(under, Mapping) or not isinstance(over, Mapping) or "value" in over:
        return over
    merged = {key: merge(under[key], over[key]) if key in over else under[key] for key in under}
    kept = {key: value for key, value in merged.items() if key not in over or over[key] is not None}
    return {**kept, **{key: value for key, value in over.items() if key not in under}}


def at_scale(content: dict[str, Any], scale: str) -> dict[str, Any]:
    """Return the composed recipe at a scale that it has, as a run keeps it."""
    content = dict(content)
    toy = content.pop("toy", None)
    if toy is None:
        return content
    if scale == "paper":
        return {**content, "scale": scale}
    for key in _OF_THE_PAPER:
        content.pop(key, None)
    return {
        **content,
        **{key: toy[key] for key in _REPLACED},
        **{key: toy.get(key) or {} for key in _FRAMEWORKS if content.get(key) is not None},
        "hyperparameters": {**content["hyperparameters"], **toy["hyperparameters"]},
        "name": f"{content['name']}-toy",
        "title": f"{content['title']}, toy scale",
        "scale": scale,
    }


def as_text(content: Mapping[str, Any], origin: str) -> str:
    """Return the YAML of a composed recipe, for the run directory."""
    return f"# {origin}, with what it extends filled in\n" + yaml.safe_dump(
        dict(content), sort_keys=False, allow_unicode=True, width=110
    )


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-6 as a number (YAML 1.1 reads text) and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
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
