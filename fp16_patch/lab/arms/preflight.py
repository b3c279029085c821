# SPDX-License-Identifier: Apache-2.0
"""Check that this machine has what a run needs: GPUs, the model, the data."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras
from fp16_patch.lab.data.model_folder import missing_model
from fp16_patch.lab.recipes.schema import REWARD_PLACE, Recipe

_CHECK = "check the path"


@dataclass(frozen=True)
class Needs:
    """What a command needs: GPUs per node, nodes, the model and the data files, each with the option that names it.

    ``whole`` says that the trainer's GPUs are all it needs: nothing else gets GPUs of its own.
    """

    gpus: tuple[str, int]
    nodes: tuple[str, int]
    model: tuple[str, str]
    files: Mapping[str, str]
    whole: bool = True


def count(key: str, value: object) -> int:
    """Return the number of GPUs or nodes in an option. Raises :class:`Fp16PatchError` if it is not one."""
    if not str(value).isdecimal() or not int(str(value)):
        raise Fp16PatchError(
            f"{key}={value}", code="value-not-allowed", allowed="a whole number, 1 or more", next_step="correct it"
        )
    return int(str(value))


def lacking(recipe: Recipe, needs: Needs, made: Path) -> Iterator[Fp16PatchError]:
    """Yield an error for each thing that is missing. ``made`` is the folder of the files that the run makes itself."""
    if recipe.platform is None:
        yield from _gpus(recipe, needs)
    yield from _files(recipe, {key: path for key, path in needs.files.items() if made not in Path(path).parents})
    if made not in Path(needs.model[1]).parents:
        yield from missing_model(*needs.model)
    if recipe.data.reward == REWARD_PLACE and importlib.util.find_spec("math_verify") is None:
        yield extras.missing("math_verify", "the reward on mathematics")


def _gpus(recipe: Recipe, needs: Needs) -> Iterator[Fp16PatchError]:
    if os.environ.get("RAY_ADDRESS"):  # a cluster, which Ray itself will count
        return
    (key, wanted), (nodes_key, nodes) = needs.gpus, needs.nodes
    if nodes > 1:
        yield Fp16PatchError(
            f"{recipe.name} needs {nodes} nodes with {wanted} GPUs each, and this is one machine",
            code="not-enough-gpus",
            allowed="a Ray cluster of that size, named by RAY_ADDRESS",
            next_step=f"start one, or {_smaller(recipe, f'{nodes_key}=1')}",
        )
        return
    there = gpus_here()
    if there < wanted:
        change = _smaller(recipe, f"{key}={there}") if there else _smaller(recipe)
        yield Fp16PatchError(
            f"{recipe.name} needs {wanted} GPUs, and this machine has {there}", code="not-enough-gpus", next_step=change
        )


def _smaller(recipe: Recipe, override: str | None = None) -> str:
    ways = [f"add {override} (the batch stays: more gradient accumulation)"] if override else []
    return " or ".join([*ways, "run --scale toy, the same algorithm on two CPU cores"] if recipe.scale else ways)


def gpus_here() -> int:
    """Return the number of GPUs of this machine that are visible."""
    import torch

    return int(torch.cuda.device_count())


def _files(recipe: Recipe, files: Mapping[str, str]) -> Iterator[Fp16PatchError]:
    gone = [f"{key}={path}" for key, path in files.items() if not Path(path).expanduser().exists()]
    if gone:
        yield Fp16PatchError(
            f"no such file: {', '.join(gone)}",
            code="file-not-found",
            allowed="existing files in the framework's format",
            next_step=recipe.data.fetch or _CHECK,
        )
