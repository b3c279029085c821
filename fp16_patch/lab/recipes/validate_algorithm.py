# SPDX-License-Identifier: Apache-2.0
"""Whether a recipe's algorithms, hyperparameters and published numbers fit each other and its frameworks."""

from __future__ import annotations

from collections.abc import Iterator

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.recipes import hyperparameters
from fp16_patch.lab.recipes.algorithms import algorithms
from fp16_patch.lab.recipes.schema import PLATFORMS, SCALES, Arm, Recipe
from fp16_patch.lab.toy import TOY_TASKS

STRATEGIES = ("fsdp2", "fsdp", "megatron")


def problems(recipe: Recipe) -> Iterator[Fp16PatchError]:
    """Everything that is wrong, without the file's name."""
    if recipe.scale not in (None, *SCALES):
        yield Fp16PatchError(f"scale={recipe.scale!r} is unknown", code="value-not-allowed", allowed=", ".join(SCALES))
    if not recipe.hyperparameters:
        yield from _written_out(recipe)
        return
    yield from hyperparameters.problems(recipe.hyperparameters, "hyperparameters")
    for name, arm in recipe.arms.items():
        yield from hyperparameters.problems(arm.hyperparameters, f"arms.{name}.hyperparameters")
        yield from _algorithm(recipe, name, arm)
    if recipe.verl and recipe.verl.strategy not in (None, *STRATEGIES):
        yield Fp16PatchError(
            f"verl.strategy={recipe.verl.strategy!r} is unknown",
            code="value-not-allowed",
            allowed=", ".join(STRATEGIES),
        )
    yield from _published(recipe)
    yield from _toy(recipe)


def _written_out(recipe: Recipe) -> Iterator[Fp16PatchError]:
    """What only hyperparameters give a meaning."""
    given = {
        "verl.strategy": recipe.verl and recipe.verl.strategy,
        "published": recipe.published,
        "toy": recipe.toy,
        **{f"arms.{name}.algorithm": arm.algorithm for name, arm in recipe.arms.items()},
        **{f"arms.{name}.hyperparameters": arm.hyperparameters for name, arm in recipe.arms.items()},
    }
    for key in (key for key, value in given.items() if value):
        yield Fp16PatchError(
            f"{key} is set, and the recipe has no hyperparameters", code="key-refused", next_step="give both or neither"
        )


def _algorithm(recipe: Recipe, name: str, arm: Arm) -> Iterator[Fp16PatchError]:
    chosen = arm.algorithm or recipe.algorithm.name
    key = f"arms.{name}.algorithm" if arm.algorithm else "algorithm.name"
    if chosen not in algorithms():
        yield Fp16PatchError(f"{key}={chosen!r} is unknown", code="unknown-algorithm", allowed=", ".join(algorithms()))
        return
    definition = algorithms()[chosen]
    given = {**recipe.hyperparameters, **arm.hyperparameters}
    for missing in sorted({*hyperparameters.ALWAYS, *definition.needs} - set(given)):
        yield Fp16PatchError(
            f"hyperparameters.{missing} is missing", code="key-missing", next_step=f"{chosen} needs it"
        )
    for framework in recipe.frameworks:
        if why := definition.not_on.get(framework):
            yield Fp16PatchError(
                f"{key}={chosen!r} is not on {framework}: {why}",
                code="algorithm-not-supported",
                next_step=f"leave it out with `{framework}: null`",
            )


def _published(recipe: Recipe) -> Iterator[Fp16PatchError]:
    for arm, numbers in recipe.published.items():
        if arm not in recipe.arms:
            yield Fp16PatchError(f"published.{arm} is no arm", code="unknown-arm", allowed=", ".join(recipe.arms))
        for i, number in enumerate(numbers):
            yield from hyperparameters.source_problems(number.source, f"published.{arm}[{i}]")


def _toy(recipe: Recipe) -> Iterator[Fp16PatchError]:
    """Only the scale may change. That the whole is a recipe again is checked by building it."""
    if recipe.toy is None:
        return
    for name in recipe.toy.hyperparameters:
        if name in hyperparameters.NAMES and name not in hyperparameters.OF_THE_SCALE:
            yield Fp16PatchError(
                f"toy.hyperparameters.{name} would change the algorithm, not its scale",
                code="key-refused",
                allowed=", ".join(sorted(hyperparameters.OF_THE_SCALE)),
            )
    for key, value, allowed in (
        ("platform", recipe.toy.platform, PLATFORMS),
        ("world", recipe.toy.world, tuple(TOY_TASKS)),
    ):
        if value not in allowed:
            yield Fp16PatchError(
                f"toy.{key}={value!r} is unknown", code="value-not-allowed", allowed=", ".join(allowed)
            )
