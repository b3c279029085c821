# SPDX-License-Identifier: Apache-2.0
"""Every algorithm as the shipped recipes configure it on a framework, each distinct configuration once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fp16_patch.lab.arms.command import Command, Job
from fp16_patch.lab.loading.load import available, load
from fp16_patch.lab.recipes.algorithms import algorithms
from fp16_patch.lab.recipes.schema import SCALES, Recipe
from fp16_patch.lab.trainers import TRAINERS


@dataclass(frozen=True)
class Case:
    """One arm of a recipe; ``hyperparameters`` are those that its loss depends on."""

    recipe: Recipe
    arm: str
    algorithm: str
    hyperparameters: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.recipe.name} {self.arm}"

    def command(self, framework: str) -> Command:
        return TRAINERS[framework].build_command(Job(self.recipe, self.arm, Path("/nowhere")))


def cases(framework: str) -> Iterator[Case]:
    """In the order of the recipes, at paper scale where it can be composed."""
    seen = []
    for scale in SCALES:
        for path in available():
            if load(path).toy is None:
                continue
            recipe = load(path, scale)
            wants_gpus = scale == "paper" and recipe.verl is not None and recipe.verl.strategy == "megatron"
            if framework not in recipe.frameworks or wants_gpus:
                continue
            for arm in recipe.arms:
                job = Job(recipe, arm, Path("/nowhere"))
                name = recipe.arms[arm].algorithm or recipe.algorithm.name
                needed = ("response_tokens", *algorithms()[name].needs)
                values = {key: float(str(job.hyperparameters[key])) for key in needed}
                configuration = (name, [values[key] for key in algorithms()[name].needs])
                if configuration not in seen:
                    seen.append(configuration)
                    yield Case(recipe, arm, name, values)
