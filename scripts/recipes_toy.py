# SPDX-License-Identifier: Apache-2.0
"""Run the toy sections of the recipes, every arm, two steps of two updates, and write docs/recipes-toy.md.

    recipes_toy.py OUT [RECIPE ...]

Without names: every recipe with a toy section, on every framework it is for. What OUT holds already is kept and
reported with the rest; a run that ended well is not repeated.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fp16_patch.cli import table
from fp16_patch.proof.report import versions
from fp16_patch.recipes.launch import run_recipe
from fp16_patch.recipes.loading import available, find, load
from fp16_patch.recipes.runs import ArmRun, read_run

ROOT = Path(__file__).resolve().parent.parent
TWO_STEPS = {"verl": ["trainer.total_training_steps=2"], "openrlhf": ["data.max_samples=32"]}
HEAD = """\
# The recipes at toy scale

Written by `make recipes-toy`: the toy section of each recipe, run with the real framework and the real vLLM on CPU, two
steps of two updates. That an arm is here means that its whole path works, rollout to update to the next weights; two
steps say nothing about learning. mean abs(pi - mu) is not logged by verl where the policy gradient takes mu for pi_old,
nor by OpenRLHF where it corrects nothing (GSPO).

"""
HEADER = (
    "recipe",
    "framework",
    "arm",
    "ended",
    "steps",
    "reward",
    "gradient norm",
    "abs(pi - mu)",
    "skipped",
    "seconds",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    asked = parser.parse_args()
    out = asked.out
    paths = [find(name) for name in asked.recipes] or [path for path in available() if load(path).toy]
    for path, framework in ((file, name) for file in paths for name in load(file).frameworks):
        folder = out / f"{path.stem}-{framework}"
        if folder.exists() and all(arm.status == "completed" for arm in read_run(folder)[1]):
            continue
        world = out / "world"
        if world.exists() and not (folder / "world").exists():
            shutil.copytree(world, folder / "world")  # found unharmed, it is used as it is
        run_recipe(path, folder, framework=framework, scale="toy", overrides=TWO_STEPS[framework], check=False)
        if not world.exists():
            shutil.copytree(folder / "world", world)
    rows = [row for folder in sorted(out.glob("*/recipe.yaml")) for row in rows_of(folder.parent)]
    there = ", ".join(f"{name} {version}" for name, version in sorted(versions().items()))
    (ROOT / "docs" / "recipes-toy.md").write_text(HEAD + table.markdown(HEADER, rows) + f"\n\nWith {there}.\n")
    return int(any(row[3] != "completed" for row in rows))


def rows_of(folder: Path) -> Iterator[tuple[str, ...]]:
    recipe, arms = read_run(folder)
    for arm in arms:
        name = recipe.name.removesuffix("-toy")
        yield name, arm.framework, arm.name, arm.status, str(len(arm.series.steps)), *numbers(arm)


def numbers(arm: ArmRun) -> tuple[str, ...]:
    series = [" ".join(f"{value:.3g}" for value in arm.series.known(name)) or "-" for name in SHOWN]
    skipped = "-" if arm.skipped_updates is None else str(arm.skipped_updates)
    return (*series, skipped, f"{arm.result.get('seconds', 0):.0f}")


SHOWN = ("reward", "grad_norm", "prob_diff_mean")

if __name__ == "__main__":
    sys.exit(main())
