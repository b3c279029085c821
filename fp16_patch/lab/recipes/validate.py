# SPDX-License-Identifier: Apache-2.0
"""What a recipe's types alone do not catch: unknown names, values out of range, options that are not ours to take."""

from __future__ import annotations

import math
import re

from fp16_patch.errors import Fp16PatchError, several
from fp16_patch.lab.cpu import rounded_rollout
from fp16_patch.lab.launch.command import EARLIER, WORLD
from fp16_patch.lab.recipes import validate_algorithm
from fp16_patch.lab.recipes.schema import PLATFORMS, PRECISIONS, REWARD_PLACE, WORLD_PLACES, Data, OtherData, Recipe
from fp16_patch.lab.toy import TOY_TASKS
from fp16_patch.lab.trainers import TRAINERS


def validate(recipe: Recipe, *, source: str) -> None:
    """Raise one :class:`Fp16PatchError` with everything that types alone do not catch."""
    problems = [*_choices(recipe, source), *_options(recipe, source), *_ranges(recipe, source)]
    problems += [error.prefixed(source) for error in validate_algorithm.problems(recipe)]
    if problems:
        raise several(problems)


def _choices(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    chosen: list[tuple[str, str | None, tuple[str, ...]]]
    chosen = [("platform", recipe.platform, PLATFORMS), ("world", recipe.world, tuple(TOY_TASKS))]
    problems = [
        Fp16PatchError(f"{source}: {key}={value!r} is unknown", code="value-not-allowed", allowed=", ".join(allowed))
        for key, value, allowed in chosen
        if value is not None and value not in allowed
    ]
    problems += [
        Fp16PatchError(
            f"{source}: arms.{name}.precision={arm.precision!r} is unknown to {framework}",
            code="not-a-precision",
            allowed=", ".join(TRAINERS[framework].PRECISIONS),
        )
        for framework in recipe.frameworks
        for name, arm in recipe.arms.items()
        if arm.precision not in TRAINERS[framework].PRECISIONS
    ]
    problems += [
        Fp16PatchError(
            f"{source}: arms.{name}.rollout={arm.rollout!r} is unknown",
            code="not-a-precision",
            allowed=", ".join(PRECISIONS),
        )
        for name, arm in recipe.arms.items()
        if arm.rollout not in (None, *PRECISIONS)
    ]
    paths = {
        "model.path": recipe.model.path,
        **{
            f"{key}.{name}": getattr(data, name) or ""
            for key, data in _data(recipe).items()
            for name in ("train", "val", "reward")
        },
    }
    placeholders = (REWARD_PLACE, *(WORLD_PLACES if recipe.world else ()))
    problems += [
        Fp16PatchError(
            f"{source}: {key}={path!r} holds an unknown placeholder",
            code="unknown-placeholder",
            allowed=", ".join(placeholders) + ("" if recipe.world else "; further ones where a world is set"),
        )
        for key, path in paths.items()
        if not set(re.findall(r"\{[^}]*\}?|\}", path)) <= set(placeholders)
    ]
    return problems


def _data(recipe: Recipe) -> dict[str, Data | OtherData]:
    sections = {f"{framework}.data": getattr(recipe, framework).data for framework in recipe.frameworks}
    return {"data": recipe.data, **sections}


def _options(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    """The options of every framework, in its own section and in the arms."""
    problems = []
    if not recipe.frameworks:
        problems.append(
            Fp16PatchError(f"{source}: no framework to run on", code="framework-missing", allowed=", ".join(TRAINERS))
        )
    if recipe.verl and recipe.data.val is None and recipe.verl.data.val is None:
        problems.append(
            Fp16PatchError(
                f"{source}: data.val is missing", code="key-missing", next_step="verl does not start without it"
            )
        )
    for framework, trainer in TRAINERS.items():
        section, key = getattr(recipe, framework), trainer.OPTIONS
        groups = {f"{framework}.{key}": getattr(section, key)} if section else {}
        for name, arm in recipe.arms.items():
            if section:
                groups[f"arms.{name}.{key}"] = getattr(arm, key)
            elif getattr(arm, key):
                problems.append(
                    Fp16PatchError(
                        f"{source}: arms.{name}.{key} are for {framework}, which this recipe does not run on",
                        code="key-refused",
                        next_step=f"remove them, or add the section {framework}",
                    )
                )
        problems += [
            error.prefixed(f"{source}: {group}")
            for group, options in groups.items()
            for option, value in options.items()
            for error in trainer.check(option, value)
        ]
    return problems


def _ranges(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    problems = []
    names = {"name": recipe.name, **{f"arms.{name}": name for name in recipe.arms}}
    problems += [
        Fp16PatchError(
            f"{source}: {key}: {name!r} names a folder", code="invalid-name", allowed="a-z, 0-9, '-' and '_'"
        )
        for key, name in names.items()
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)
    ]
    problems += [
        Fp16PatchError(
            f"{source}: arms.{name}: the run directory has a folder of that name",
            code="invalid-name",
            next_step="choose another name",
        )
        for name in (EARLIER, WORLD)
        if name in recipe.arms
    ]
    if not recipe.arms:
        problems.append(
            Fp16PatchError(
                f"{source}: arms is empty", code="value-not-allowed", next_step="add one, e.g. fp16: {precision: fp16}"
            )
        )
    positive = {
        "hardware.ranks": recipe.hardware.ranks,
        "hardware.nodes": recipe.hardware.nodes,
        "hardware.timeout_minutes": recipe.hardware.timeout_minutes,
    }
    problems += [
        Fp16PatchError(f"{source}: {key}={value!r}", code="value-not-allowed", allowed="more than zero")
        for key, value in positive.items()
        if not 0 < value < math.inf
    ]
    bits = {f"arms.{name}.rollout_significand": arm.rollout_significand for name, arm in recipe.arms.items()}
    fewest, most = rounded_rollout.FEWEST, rounded_rollout.MOST
    problems += [
        Fp16PatchError(
            f"{source}: {key}={value!r}", code="value-not-allowed", allowed=f"{fewest} to {most}, and platform: cpu"
        )
        for key, value in bits.items()
        if value is not None and not (recipe.platform == "cpu" and fewest <= value <= most)
    ]
    problems += [
        Fp16PatchError(
            f"{source}: expected {e.metric} has no bound", code="bound-missing", allowed="at_least, at_most or both"
        )
        for e in recipe.expected
        if e.at_least is None and e.at_most is None
    ]
    return problems
