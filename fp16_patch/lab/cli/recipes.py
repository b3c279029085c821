# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch recipes``: list, show, check, run and compare; ``recipes data`` is in a file of its own."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from textwrap import indent
from typing import Any

from fp16_patch import text_table
from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras
from fp16_patch.lab.cli import recipes_data
from fp16_patch.lab.cli.argument_types import number, positive, positive_number
from fp16_patch.lab.recipes.schema import SCALES

_ABOUT_COMMANDS = """\
# These commands are not composed yet: `fp16-patch recipes check` does that, and so does a run before it starts.
# Python and absolute paths are those of this machine; relative paths start in this folder. On a cluster every node
# needs the same paths and this package in its environment, and RAY_ADDRESS must name the cluster.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``recipes`` with its commands. Each sets ``handler``, a function that returns the exit status."""
    recipes = subparsers.add_parser("recipes", help="run comparisons of the paper and report them")
    recipes.set_defaults(run=_run_handler)
    commands = recipes.add_subparsers(dest="recipes_command", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="list the shipped recipes, each with the figure that it reproduces")
    listing.add_argument("--json", action="store_true", help="print the whole recipes as JSON")
    listing.set_defaults(handler=_list)

    show = commands.add_parser("show", help="print a recipe with its shared settings, loss and sources")
    show.add_argument("recipe", metavar="NAME", help="a shipped recipe, or the path of a .yaml file")
    show.add_argument("--yaml", action="store_true", help="print one YAML file, at one scale")
    show.add_argument("--scale", choices=SCALES, help="(default: both; with --yaml the larger one)")
    show.set_defaults(handler=_show)

    composing = "compose recipes with the installed frameworks; start nothing"
    statuses = "Exit status: 1 if an arm would not start, 2 if a file is not a recipe."
    check = commands.add_parser("check", help=composing, description=f"{composing.capitalize()}. {statuses}")
    check.add_argument("recipes", metavar="NAME", nargs="*", help="shipped recipes, or paths of .yaml files")
    check.add_argument("--all", action="store_true", help="every shipped recipe")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(handler=_check)

    run = commands.add_parser("run", help="run the arms of a recipe, and compare them")
    run.add_argument("recipe", metavar="NAME_OR_PATH", help="a shipped recipe, or the path of a .yaml file")
    override = "an option of the framework for every arm; may be repeated"
    run.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=override)
    run.add_argument("--framework", metavar="F", help="verl or openrlhf (default: the recipe's first)")
    run.add_argument("--scale", choices=SCALES, help="toy is for two CPU cores (default: paper if the recipe has it)")
    run.add_argument("--print", action="store_true", dest="only_print", help="print the commands and start nothing")
    run.add_argument("--out", type=Path, help="folder for results (default: runs/NAME)")
    arm = "run this arm only; may be repeated"
    run.add_argument("--arm", action="append", default=[], dest="arms", metavar="A", help=arm)
    jobs = "number of arms at a time (default: as many as there are GPUs for; on a CPU and on a cluster: 1)"
    run.add_argument("--jobs", type=positive, metavar="N", help=jobs)
    limit = "limit for one arm (default: the recipe's)"
    run.add_argument("--timeout", type=positive_number, metavar="MINUTES", help=limit)
    resume = "keep the arms in --out that completed with the same settings; run the others from their first step"
    run.add_argument("--resume", action="store_true", help=resume)
    run.set_defaults(handler=_run)

    compare = commands.add_parser(
        "compare",
        help="report on finished or running runs: figure, collapse, time to a reward, the paper's numbers",
    )
    compare.add_argument(
        "sources",
        nargs="+",
        metavar="RUN_DIR|ARM=PATH",
        help="a folder that `recipes run` wrote; or, for an arm of --recipe, the log of another run: a folder of "
        "TensorBoard events, a .csv that wandb exported, a .jsonl of verl or of wandb's history; several logs of one "
        "arm are merged",
    )
    out = "folder for the report (default: RUN_DIR; required with several runs or with ARM=PATH)"
    compare.add_argument("--out", type=Path, help=out)
    compare.add_argument("--recipe", metavar="NAME_OR_PATH", help="the recipe that the ARM=PATH logs are runs of")
    compare.add_argument("--scale", choices=SCALES, help="the scale of --recipe (default: paper if it has it)")
    compare.add_argument(
        "--reward",
        type=number,
        metavar="X",
        help="report time and tokens to this smoothed reward (default: 90%% of the way from the start to the highest "
        "reward that every arm reaches)",
    )
    smooth = "window of the smoothing, 1 for none (default: 1/40 of the longest run, at least 5)"
    compare.add_argument("--smooth", type=positive, dest="window", metavar="STEPS", help=smooth)
    different = "compare runs with different settings; the report names them"
    compare.add_argument("--allow-different", action="store_true", help=different)
    compare.set_defaults(handler=_compare)

    recipes_data.add_parser(commands)


def _run_handler(arguments: argparse.Namespace) -> int:
    with extras.required("fp16-patch recipes"):
        return int(arguments.handler(arguments))


def _list(arguments: argparse.Namespace) -> int:
    from fp16_patch.lab.comparison.recipe_page import LIST_HEADER, list_row
    from fp16_patch.lab.loading.load import available, load

    recipes = [load(path) for path in available()]
    if arguments.json:
        print(json.dumps([{**dataclasses.asdict(recipe), "scales": recipe.scales} for recipe in recipes], indent=2))
    else:
        print(text_table.plain(LIST_HEADER, [list_row(recipe) for recipe in recipes]))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from fp16_patch.lab.comparison.recipe_page import render_recipe
    from fp16_patch.lab.loading.load import find, load_at_scale

    path = find(arguments.recipe)
    _, text = load_at_scale(path, arguments.scale)
    print(text if arguments.yaml else render_recipe(path, arguments.scale), end="")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from fp16_patch.lab.launch.check import check
    from fp16_patch.lab.loading.load import available, find

    if bool(arguments.recipes) == arguments.all:
        found_none = "both names and --all" if arguments.all else "no recipe to check"
        raise Fp16PatchError(found_none, code="invalid-arguments", next_step="name some, or give --all")
    paths = available() if arguments.all else [find(name) for name in arguments.recipes]
    found = []
    for checked in check(paths):
        found.append(checked)
        if not arguments.json:
            *what, problem = dataclasses.astuple(checked)
            print(f"{'FAILS' if problem else 'ok':<6} {'  '.join(what)}", flush=True)
            print(indent(f"{problem}\n", "       ") if problem else "", end="", flush=True)
    failed = sum(checked.problem is not None for checked in found)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(checked) for checked in found], indent=2))
    else:
        print(f"{len(found) - failed} of {len(found)} would start with what is installed here")
    if any(checked.problem and checked.scale == "-" for checked in found):  # not a recipe
        return 2
    return 1 if failed else 0


def _run(arguments: argparse.Namespace) -> int:
    from fp16_patch.lab.comparison.compare import compare
    from fp16_patch.lab.comparison.report_directory import check_output
    from fp16_patch.lab.launch.plan import make_plan
    from fp16_patch.lab.launch.run import run_recipe
    from fp16_patch.lab.loading.load import find, load

    path = find(arguments.recipe)
    toy = "toy" if arguments.scale == "toy" and "paper" in load(path).scales else None
    out = arguments.out or Path("runs") / "-".join(filter(None, (path.stem, toy, arguments.framework)))
    chosen = {name: getattr(arguments, name) for name in ("framework", "arms", "overrides", "scale")}
    if arguments.only_print:
        plan = make_plan(path, out, **chosen)
        print(_ABOUT_COMMANDS)
        if make := plan.toy_task_command():
            print(f"# its toy task, before the first arm\n{make}\n")
        for arm, command in plan.commands.items():
            print(f"# {arm}\n{command.as_shell()}\n")
        return 0
    check_output(out)
    timeout_s = None if arguments.timeout is None else arguments.timeout * 60
    try:
        results = run_recipe(path, out, **chosen, timeout_s=timeout_s, resume=arguments.resume, jobs=arguments.jobs)
    except (KeyboardInterrupt, SystemExit) as stopped:  # Ctrl-C, SIGTERM
        print(
            f"\ninterrupted; compare what has run: fp16-patch recipes compare {out}"
            "\nrun the missing arms: the same command with --resume"
        )
        return 130 if isinstance(stopped, KeyboardInterrupt) else int(stopped.code or 0)
    compare(out, allow_different=True)  # what has been run is reported, whatever it is
    return 0 if all(result.status == "completed" for result in results) else 1


def _compare(arguments: argparse.Namespace) -> int:
    from fp16_patch.lab.comparison.compare import compare

    names = ("out", "recipe", "scale", "reward", "window", "allow_different")
    compare(*arguments.sources, **{name: getattr(arguments, name) for name in names})
    return 0
