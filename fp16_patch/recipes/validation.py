# SPDX-License-Identifier: Apache-2.0
"""What a recipe's types alone do not catch: unknown names, values out of range, overrides that are not ours to take."""

from __future__ import annotations

import re

from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.recipes.schema import LAUNCHER_KEYS, PLATFORMS, WORLD_PLACES, WORLDS, Recipe, precisions


def validate(recipe: Recipe, *, source: str) -> None:
    """Raise one :class:`Fp16PatchError` with everything that types alone do not catch."""
    problems = [*_choices(recipe, source), *_overrides(recipe, source), *_ranges(recipe, source)]
    if problems:
        raise several(problems)


def _choices(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    chosen: list[tuple[str, str | None, tuple[str, ...]]]
    chosen = [("platform", recipe.platform, PLATFORMS), ("world", recipe.world, WORLDS)]
    chosen += [(f"arms.{name}.precision", arm.precision, precisions()) for name, arm in recipe.arms.items()]
    problems = [
        Fp16PatchError(f"{source}: {key}={value!r} is unknown", allowed=", ".join(allowed))
        for key, value, allowed in chosen
        if value is not None and value not in allowed
    ]
    paths = {
        "model.path": recipe.model.path,
        "data.train": recipe.data.train,
        "data.val": recipe.data.val,
        "data.reward": recipe.data.reward or "",
    }
    placeholders = WORLD_PLACES if recipe.world else ()
    problems += [
        Fp16PatchError(
            f"{source}: {key}={path!r} holds an unknown placeholder",
            allowed=", ".join(placeholders) or "placeholders where a world is set",
        )
        for key, path in paths.items()
        if not set(re.findall(r"\{[^}]*\}?|\}", path)) <= set(placeholders)
    ]
    return problems


def _overrides(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    groups = {"verl.overrides": recipe.verl.overrides}
    groups |= {f"arms.{name}.overrides": arm.overrides for name, arm in recipe.arms.items()}
    problems = []
    for group, overrides in groups.items():
        for key, value in overrides.items():
            if key.lstrip("+~") in LAUNCHER_KEYS:
                problems.append(
                    Fp16PatchError(f"{source}: {group} sets {key}, which the launcher sets", next_step="remove it")
                )
            if not _is_plain(value):
                problems.append(
                    Fp16PatchError(
                        f"{source}: {group}: {key}={value!r} cannot be written as one override",
                        allowed="text, number, true, false, null, or a list of these",
                        next_step="give one dotted key per value",
                    )
                )
    return problems


def _ranges(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    problems = []
    for name in (recipe.name, *recipe.arms):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            problems.append(Fp16PatchError(f"{source}: {name!r} names a folder", allowed="a-z, 0-9, '-' and '_'"))
    if not recipe.arms:
        problems.append(Fp16PatchError(f"{source}: arms is empty", next_step="add one, e.g. fp16: {precision: fp16}"))
    positive = {
        "hardware.ranks": recipe.hardware.ranks,
        "hardware.nodes": recipe.hardware.nodes,
        "hardware.timeout_minutes": recipe.hardware.timeout_minutes,
    }
    problems += [
        Fp16PatchError(f"{source}: {key}={value!r}", allowed="more than zero")
        for key, value in positive.items()
        if value <= 0
    ]
    problems += [
        Fp16PatchError(f"{source}: expected {e.metric} has no bound", allowed="at_least, at_most or both")
        for e in recipe.expected
        if e.at_least is None and e.at_most is None
    ]
    return problems


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)
