# SPDX-License-Identifier: Apache-2.0
"""The runs to compare, as a user names them: run directories, and logs of other runs as ``ARM=PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.analysis.run_diff import Run
from fp16_patch.lab.logs.multi_file_runs import read_together
from fp16_patch.lab.logs.readers import Rows
from fp16_patch.lab.logs.runs import ArmRun, read_run
from fp16_patch.lab.logs.series import KEYS, Series, framework_of, series_of
from fp16_patch.lab.recipes.load import find, load, scale_of
from fp16_patch.lab.recipes.schema import Recipe

_IMPORTED = "imported"


def read_sources(given: Sequence[str], recipe: str | None = None, scale: str | None = None) -> list[Run]:
    """Run directories in their order, then one run of all imported arms.

    Several files for one arm are read together: wandb exports a chart at a time. ``recipe`` says what the imported arms
    are runs of, at which ``scale`` (default: the larger it has). Raises :class:`Fp16PatchError` for whatever is no run.
    """
    folders = [Path(text) for text in given if "=" not in text or Path(text).exists()]
    logs: dict[str, list[Path]] = {}
    for text in (text for text in given if "=" in text and not Path(text).exists()):
        arm, _, path = text.partition("=")
        logs.setdefault(arm, []).append(Path(path))
    _refuse_twice(folders)
    found = [read_run(folder) for folder in folders]
    labels = _labels(folders, [arms[0].framework for _, arms in found], beside=[_IMPORTED] if logs else [])
    runs = [Run(labels[i], folders[i], of, arms) for i, (of, arms) in enumerate(found)]
    if not logs and (recipe or scale):
        raise Fp16PatchError(
            "--recipe and --scale are of logs",
            code="invalid-arguments",
            next_step="give some as ARM=PATH, or leave them out",
        )
    if not logs:
        return runs
    if recipe is None:
        raise Fp16PatchError(
            f"{', '.join(logs)}: nothing says what these are runs of",
            code="recipe-not-given",
            next_step="give --recipe, a name or a path",
        )
    file = find(recipe)
    label = _IMPORTED if runs else ""
    return [*runs, Run(label, None, *_imported(load(file, scale_of(file, scale)), logs))]


def _refuse_twice(folders: Sequence[Path]) -> None:
    """A run by two names is one run, and no repeat of itself."""
    first: dict[Path, Path] = {}
    for folder in folders:
        if (there := first.setdefault(folder.resolve(), folder)) is not folder:
            again = "" if there == folder else f": it is {there} too"
            raise Fp16PatchError(
                f"the run directory {folder} is given twice{again}", code="run-given-twice", next_step="give each once"
            )


def _labels(folders: Sequence[Path], frameworks: Sequence[str], beside: Sequence[str]) -> list[str]:
    """What tells the runs apart, from those ``beside`` them too; nothing for a single run.

    The framework or, where two ran on the same or logs say nothing of theirs, the folder.
    """
    if len(folders) + len(beside) <= 1:
        return [""] * len(folders)
    names = [folder.resolve().name for folder in folders]
    candidates = [names, [str(folder) for folder in folders], [str(folder.resolve()) for folder in folders]]
    if not beside:
        candidates.insert(0, list(frameworks))
    return next(labels for labels in candidates if len({*labels, *beside}) == len(folders) + len(beside))


def _imported(recipe: Recipe, logs: dict[str, list[Path]]) -> tuple[Recipe, list[ArmRun]]:
    for name in logs:
        if name not in recipe.arms:
            raise Fp16PatchError(
                f"{recipe.name} has no arm {name!r}", code="unknown-arm", allowed=", ".join(recipe.arms)
            )
    return recipe, [_arm(recipe, name, logs[name]) for name in recipe.arms if name in logs]


def _arm(recipe: Recipe, name: str, paths: list[Path]) -> ArmRun:
    rows = read_together(name, paths)
    series = series_of(rows)
    _check(series, rows, name, paths)
    return ArmRun(
        name=name,
        framework=framework_of(rows),
        precision=recipe.arms[name].precision,
        series=series,
        result={},
        precision_report=None,
        imported_from=tuple(paths),
    )


def _check(series: Series, rows: Rows, name: str, paths: list[Path]) -> None:
    """A run without a training reward is nothing to compare."""
    if series.known("reward"):
        return
    logged = list(dict.fromkeys(key for data in rows.by_step.values() for key in data))
    raise Fp16PatchError(
        f"{name}: no training reward in {', '.join(map(str, paths))}; "
        + (f"there are {', '.join(logged[:8])}" + ", ..." * (len(logged) > 8) if logged else "no step can be read"),
        code="metric-not-found",
        allowed=" or ".join(KEYS["reward"]),
        next_step="export the reward too, or add a file that has it for the same arm",
    )
