# SPDX-License-Identifier: Apache-2.0
"""Check what a recipe's types alone do not catch: unknown names, values out of range, parts that do not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import EARLIER, WORLD
from fp16_patch.lab.cpu import rounded_rollout
from fp16_patch.lab.recipes import hyperparameters, schema
from fp16_patch.lab.recipes.algorithms import algorithms
from fp16_patch.lab.recipes.parse import refuse
from fp16_patch.lab.recipes.schema import Arm, Recipe
from fp16_patch.lab.toy import TOY_TASKS
from fp16_patch.lab.trainers import TRAINERS

Errors = Iterator[Fp16PatchError]


def validate(recipe: Recipe, *, source: str) -> None:
    """Raise one :class:`Fp16PatchError` with every problem found; ``source`` names the file."""
    problems = [*_names(recipe), *_choices(recipe), *_placeholders(recipe), *_options(recipe), *_ranges(recipe)]
    problems += _hyperparameters(recipe) if recipe.hyperparameters else _without_hyperparameters(recipe)
    refuse(problems, source)


def _choice(key: str, value: object, allowed: Collection[str], to: str = "", *, precision: bool = False) -> Errors:
    if value is not None and value not in allowed:
        yield Fp16PatchError(
            f"{key}={value!r} is unknown{to}",
            code="not-a-precision" if precision else "value-not-allowed",
            allowed=", ".join(allowed),
        )


def _names(recipe: Recipe) -> Errors:
    for key, name in {"name": recipe.name, **{f"arms.{name}": name for name in recipe.arms}}.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            what = f"{key}: {name!r} cannot be the name of a folder"
            yield Fp16PatchError(what, code="invalid-name", allowed="a-z, 0-9, '-' and '_'")
    for name in sorted({EARLIER, WORLD} & set(recipe.arms)):
        what = f"arms.{name}: the run directory has a folder of that name"
        yield Fp16PatchError(what, code="invalid-name", next_step="choose another name")
    if not recipe.arms:
        yield Fp16PatchError("arms is empty", code="value-not-allowed", next_step="add fp16: {precision: fp16}")


def _choices(recipe: Recipe) -> Errors:
    yield from _choice("platform", recipe.platform, schema.PLATFORMS)
    yield from _choice("world", recipe.world, TOY_TASKS)
    yield from _choice("scale", recipe.scale, schema.SCALES)
    for name, arm in recipe.arms.items():
        for framework in recipe.frameworks:
            known = TRAINERS[framework].precisions
            yield from _choice(f"arms.{name}.precision", arm.precision, known, f" to {framework}", precision=True)
        yield from _choice(f"arms.{name}.rollout", arm.rollout, schema.PRECISIONS, precision=True)


def _placeholders(recipe: Recipe) -> Errors:
    paths = {"model.path": recipe.model.path}
    sections = {f"{framework}.data": getattr(recipe, framework).data for framework in recipe.frameworks}
    for key, data in {"data": recipe.data, **sections}.items():
        paths |= {f"{key}.{name}": getattr(data, name) or "" for name in ("train", "val", "reward")}
    known = (schema.REWARD_PLACE, *(schema.WORLD_PLACES if recipe.world else ()))
    allowed = ", ".join(known) + ("" if recipe.world else f"; {', '.join(schema.WORLD_PLACES)} if world is set")
    for key, path in paths.items():
        if not set(re.findall(r"\{[^}]*\}?|\}", path)) <= set(known):
            what = f"{key}={path!r} holds an unknown placeholder"
            yield Fp16PatchError(what, code="unknown-placeholder", allowed=allowed)


def _options(recipe: Recipe) -> Errors:
    """Check the options of every framework, in its own section and in the arms."""
    if not recipe.frameworks:
        yield Fp16PatchError("no framework to run on", code="framework-missing", allowed=", ".join(TRAINERS))
    if recipe.verl and recipe.data.val is None and recipe.verl.data.val is None:
        yield Fp16PatchError("data.val is missing", code="key-missing", next_step="verl does not start without it")
    for framework, trainer in TRAINERS.items():
        section, key = getattr(recipe, framework), trainer.options_key
        groups = {f"arms.{name}.{key}": getattr(arm, key) for name, arm in recipe.arms.items()}
        if section is not None:
            groups[f"{framework}.{key}"] = getattr(section, key)
        for group, options in groups.items():
            if options and section is None:
                what = f"{group} are for {framework}, which this recipe does not run on"
                remove = f"remove them, or add the section {framework}"
                yield Fp16PatchError(what, code="key-refused", next_step=remove)
                continue
            for option, value in options.items():
                yield from (error.prefixed(group) for error in trainer.check(option, value))


def _ranges(recipe: Recipe) -> Errors:
    for key in ("ranks", "nodes", "timeout_minutes"):
        if not 0 < (value := getattr(recipe.hardware, key)) < math.inf:
            yield Fp16PatchError(f"hardware.{key}={value!r}", code="value-not-allowed", allowed="more than zero")
    fewest, most = rounded_rollout.FEWEST, rounded_rollout.MOST
    for name, arm in recipe.arms.items():
        bits = arm.rollout_significand
        if bits is not None and not (recipe.platform == "cpu" and fewest <= bits <= most):
            what, allowed = f"arms.{name}.rollout_significand={bits!r}", f"{fewest} to {most}, and platform: cpu"
            yield Fp16PatchError(what, code="value-not-allowed", allowed=allowed)
    for expected in recipe.expected:
        if expected.at_least is None and expected.at_most is None:
            what = f"expected {expected.metric} has no bound"
            yield Fp16PatchError(what, code="bound-missing", allowed="at_least, at_most or both")


def _without_hyperparameters(recipe: Recipe) -> Errors:
    """Refuse the keys that only a recipe with hyperparameters may have."""
    given = {
        "verl.strategy": recipe.verl and recipe.verl.strategy,
        "published": recipe.published,
        "toy": recipe.toy,
        **{f"arms.{name}.algorithm": arm.algorithm for name, arm in recipe.arms.items()},
        **{f"arms.{name}.hyperparameters": arm.hyperparameters for name, arm in recipe.arms.items()},
    }
    for key in (key for key, value in given.items() if value):
        what = f"{key} is set, and the recipe has no hyperparameters"
        yield Fp16PatchError(what, code="key-refused", next_step="give both or neither")


def _hyperparameters(recipe: Recipe) -> Errors:
    yield from hyperparameters.problems(recipe.hyperparameters, "hyperparameters")
    for name, arm in recipe.arms.items():
        yield from hyperparameters.problems(arm.hyperparameters, f"arms.{name}.hyperparameters")
        yield from _algorithm(recipe, name, arm)
    if recipe.verl:
        yield from _choice("verl.strategy", recipe.verl.strategy, schema.STRATEGIES)
    for name, numbers in recipe.published.items():
        if name not in recipe.arms:
            yield Fp16PatchError(f"published.{name} is not an arm", code="unknown-arm", allowed=", ".join(recipe.arms))
        for i, number in enumerate(numbers):
            yield from _choice(f"published.{name}[{i}].source", number.source, hyperparameters.SOURCES)
    if recipe.toy is not None:  # only the scale may change; building the toy recipe checks the rest
        yield from _choice("toy.platform", recipe.toy.platform, schema.PLATFORMS)
        yield from _choice("toy.world", recipe.toy.world, TOY_TASKS)
        for name in sorted(set(recipe.toy.hyperparameters) & set(hyperparameters.NAMES) - hyperparameters.OF_THE_SCALE):
            what = f"toy.hyperparameters.{name} would change the algorithm, not its scale"
            yield Fp16PatchError(what, code="key-refused", allowed=", ".join(sorted(hyperparameters.OF_THE_SCALE)))


def _algorithm(recipe: Recipe, name: str, arm: Arm) -> Errors:
    chosen = arm.algorithm or recipe.algorithm.name
    key = f"arms.{name}.algorithm" if arm.algorithm else "algorithm.name"
    if chosen not in algorithms():
        yield Fp16PatchError(f"{key}={chosen!r} is unknown", code="unknown-algorithm", allowed=", ".join(algorithms()))
        return
    definition = algorithms()[chosen]
    given = {*recipe.hyperparameters, *arm.hyperparameters}
    for missing in sorted({*hyperparameters.ALWAYS, *definition.needs} - given):
        what = f"hyperparameters.{missing} is missing, and {chosen} needs it"
        yield Fp16PatchError(what, code="key-missing", next_step="add it")
    for framework in recipe.frameworks:
        if why := definition.not_on.get(framework):
            what, leave_out = f"{key}={chosen!r} is not on {framework}: {why}", f"remove it with `{framework}: null`"
            yield Fp16PatchError(what, code="algorithm-not-supported", next_step=leave_out)
