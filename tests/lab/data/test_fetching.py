# SPDX-License-Identifier: Apache-2.0
"""What a recipe says to do about missing data is a command, and it makes the files that the recipe reads."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from fp16_patch.lab.cli import recipes_data
from fp16_patch.lab.data.output import Output
from fp16_patch.lab.loading.load import available, load

PAPER = [path for path in available() if load(path).world is None]


def made(command: str) -> Output:
    parser = argparse.ArgumentParser(exit_on_error=False)
    recipes_data.add_parser(parser.add_subparsers())
    program, recipes, *words = shlex.split(command)
    assert (program, recipes) == ("fp16-patch", "recipes")
    arguments = parser.parse_args(words)
    recipes_data._dataset(arguments)  # refuses a wrong template
    return Output(arguments.out, arguments.name)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_commands_make_the_files_of_the_recipe(path: Path) -> None:
    recipe = load(path)
    commands, _, remark = recipe.data.fetch.partition("#")
    outputs = [made(command) for command in commands.split("&&")]
    made(
        f"fp16-patch recipes data{remark.partition('fp16-patch recipes data')[2]}"
    ) if "data sanity" in remark else None
    assert {recipe.data.train, recipe.data.val} == {str(output.parquet) for output in outputs}
    if recipe.openrlhf is not None:
        other = recipe.openrlhf.data
        assert {other.train, other.val} == {str(output.jsonl) for output in outputs}


def test_there_are_such_recipes() -> None:
    assert len(PAPER) > 10
