# SPDX-License-Identifier: Apache-2.0
"""Run the toy sections of the recipes, every arm, two steps of two updates, and write docs/recipes-toy.md.

    recipes_toy.py OUT [RECIPE ...]

Without names it runs every recipe with a toy section, on each of its frameworks. Completed arms are recorded in
benchmarks/recipes_toy.jsonl, and run again only after their recipe changes at toy scale. Arms that are complete in OUT
are recorded without running them again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recorded_curves import count_not_finite, record_curve, show_curve

from fp16_patch import text_table
from fp16_patch.lab.launch.run import run_recipe
from fp16_patch.lab.loading.load import available, find, load, load_at_scale
from fp16_patch.lab.logs.runs import ArmRun, read_run

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "recipes_toy.jsonl"
TWO_STEPS = {"verl": ["trainer.total_training_steps=2"], "openrlhf": ["data.max_samples=32"]}
CURVES = ("reward", "grad_norm", "prob_diff_mean")
PAGE = ROOT / "docs" / "recipes-toy.md"
HEAD = """\
# The recipes at toy scale

Written by `make recipes-toy`: the toy section of each recipe, run with the real framework and the real vLLM on CPU, two
steps of two updates (figure-5-offline measures: one update, at learning rate 0). That an arm is here means that its
whole path works, rollout to update to the next weights; two steps say nothing about learning. mean abs(pi - mu) is not
logged by OpenRLHF where it corrects nothing (GSPO). The machines were busy with other work to different degrees, so the
seconds are no measurement. Versions: `benchmarks/recipes_toy.jsonl`.

"""
HEADER = (
    "recipe",
    "framework",
    "arm",
    "steps",
    "reward",
    "gradient norm",
    "abs(pi - mu)",
    "skipped",
    "seconds",
    "day",
)

Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    arguments = parser.parse_args()
    failed = False
    for path in [find(name) for name in arguments.recipes] or every_recipe():
        for framework in load(path, "toy").frameworks:
            missing = [arm for arm in load(path, "toy").arms if recorded(path, framework, arm) is None]
            if missing:
                failed |= not run(arguments.out, path, framework, missing)
    PAGE.write_text(page(), encoding="utf-8")
    return int(failed)


def every_recipe() -> list[Path]:
    return [path for path in available() if load(path).toy]


def run(out: Path, path: Path, framework: str, arms: list[str]) -> bool:
    """Run these arms, record the completed ones, and return whether all completed."""
    folder, name = out / f"{path.stem}-{framework}", str(load(path, "toy").world)
    world = out / "worlds" / name
    if world.exists() and not (folder / "world").exists():
        shutil.copytree(world, folder / "world")  # an unchanged toy task is reused
    overrides = TWO_STEPS[framework]
    run_recipe(path, folder, framework=framework, arms=arms, scale="toy", overrides=overrides, resume=True)
    if not world.exists():
        shutil.copytree(folder / "world", world)
    completed = [arm for arm in read_run(folder)[1] if arm.name in arms and arm.status == "completed"]
    with RECORDS.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record(path, framework, arm)) + "\n" for arm in completed)
    return len(completed) == len(arms)


def record(path: Path, framework: str, arm: ArmRun) -> Record:
    """Return the record of an arm. Its curves leave out the steps that did not log them."""
    curves = {name: [v for v in record_curve(arm.series, name, 3) if v is not None] for name in CURVES}
    return {
        "recipe": path.stem,
        "digest": digest(path),
        "framework": framework,
        "arm": arm.name,
        "steps": len(arm.series.steps),
        **curves,
        "non_finite": {name: count for name, curve in curves.items() if (count := count_not_finite(curve))},
        "skipped": arm.skipped_updates,
        "seconds": arm.result.get("seconds"),
        "started": arm.result.get("started"),
        "versions": arm.result.get("versions"),
    }


def digest(path: Path) -> str:
    """Return a digest of the recipe at toy scale."""
    return hashlib.sha256(load_at_scale(path, "toy")[1].encode()).hexdigest()[:12]


def recorded(path: Path, framework: str, arm: str) -> Record | None:
    """Return the arm's last record of the recipe's current text, or None."""
    key = {"recipe": path.stem, "digest": digest(path), "framework": framework, "arm": arm}
    text = RECORDS.read_text(encoding="utf-8") if RECORDS.exists() else ""
    return next((r for r in map(json.loads, reversed(text.splitlines())) if key.items() <= r.items()), None)


def page() -> str:
    """Return the text of docs/recipes-toy.md, with a row for each arm of each recipe."""
    return HEAD + text_table.markdown(HEADER, list(rows())) + "\n"


def rows() -> Iterator[tuple[str, ...]]:
    for path in every_recipe():
        recipe = load(path, "toy")
        for framework, arm in ((framework, arm) for framework in recipe.frameworks for arm in recipe.arms):
            found = recorded(path, framework, arm)
            yield path.stem, framework, arm, *(numbers(found) if found else ("not run", *["-"] * (len(HEADER) - 4)))


def numbers(found: Record) -> tuple[str, ...]:
    series = [show_curve(found[name]) for name in CURVES]
    skipped = "-" if found["skipped"] is None else str(found["skipped"])
    return str(found["steps"]), *series, skipped, f"{found['seconds']:.0f}", found["started"][:10]


if __name__ == "__main__":
    sys.exit(main())
