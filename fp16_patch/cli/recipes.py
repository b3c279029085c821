# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch recipes``: list, show, run and compare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = Any


def add_parser(subparsers: Subparsers) -> None:
    """Add ``recipes`` with its commands. Each sets ``run``, a function from the arguments to an exit code."""
    recipes = subparsers.add_parser("recipes", help="run comparisons of the paper and report them")
    commands = recipes.add_subparsers(dest="recipes_command", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="name the shipped recipes")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="print a recipe")
    show.add_argument("recipe", metavar="NAME", help="a shipped recipe, or the path of a .yaml file")
    show.set_defaults(run=_show)

    run = commands.add_parser("run", help="run the arms of a recipe one after the other, then compare them")
    run.add_argument("recipe", metavar="NAME_OR_PATH", help="a shipped recipe, or the path of a .yaml file")
    run.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="further options of the framework, for every arm"
    )
    run.add_argument(
        "--framework", metavar="F", help="verl or openrlhf, where the recipe has both (default: its first)"
    )
    run.add_argument("--out", type=Path, help="folder for results (default: runs/NAME)")
    run.add_argument("--arm", action="append", default=[], metavar="A", help="run this arm only; may be repeated")
    run.add_argument("--timeout", type=float, metavar="MINUTES", help="limit for one arm (default: the recipe's)")
    run.set_defaults(run=_run)

    compare = commands.add_parser("compare", help="write the report of a run directory again, or one over several")
    compare.add_argument("folders", type=Path, nargs="+", metavar="RUN_DIR")
    compare.add_argument("--out", type=Path, help="folder for the report (default: RUN_DIR; needed for several)")
    compare.set_defaults(run=_compare)


def _list(_arguments: argparse.Namespace) -> int:
    from fp16_patch.recipes.loading import available, load

    recipes = [load(path) for path in available()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        needs = recipe.hardware.about or f"{recipe.hardware.ranks} ranks"
        print(f"{recipe.name:<{width}}  {recipe.title}  [{', '.join(recipe.frameworks)}; {needs}]")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from fp16_patch.recipes.loading import find, load

    path = find(arguments.recipe)
    load(path)
    print(path.read_text(encoding="utf-8"), end="")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from fp16_patch.recipes.launch import run_recipe
    from fp16_patch.recipes.loading import find
    from fp16_patch.recipes.report import compare

    path = find(arguments.recipe)
    out = arguments.out or Path("runs") / "-".join(filter(None, (path.stem, arguments.framework)))
    try:
        results = run_recipe(
            path,
            out,
            framework=arguments.framework,
            arms=arguments.arm,
            overrides=arguments.overrides,
            timeout_s=arguments.timeout * 60 if arguments.timeout else None,
        )
    except KeyboardInterrupt:
        print(f"\ninterrupted; what there is: fp16-patch recipes compare {out}")
        return 130
    compare(out)
    return 0 if all(result.status == "completed" for result in results) else 1


def _compare(arguments: argparse.Namespace) -> int:
    from fp16_patch.recipes.report import compare

    compare(*arguments.folders, out=arguments.out)
    return 0
