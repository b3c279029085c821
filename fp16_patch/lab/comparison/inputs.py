# SPDX-License-Identifier: Apache-2.0
"""Read the runs to compare: run directories, and logs of other runs as ``ARM=PATH``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.lab.loading.load import find, load_at_scale
from fp16_patch.lab.logs.multi_file_runs import read_logs
from fp16_patch.lab.logs.readers import StepMetrics, not_a_log
from fp16_patch.lab.logs.runs import ArmRun, Run, read_run
from fp16_patch.lab.logs.series import METRIC_KEYS, Series, build_series, detect_framework
from fp16_patch.lab.recipes.schema import Recipe

_IMPORTED = "imported"


def read_inputs(sources: Sequence[str], recipe: str | None = None, scale: str | None = None) -> list[Run]:
    """Return the run directories in their order, then one run of all imported arms.

    Several files of one arm are merged: wandb exports one chart at a time. ``recipe`` is the recipe of the imported
    arms, at ``scale`` (default: the larger one it has).

    Raises:
        Fp16PatchError: A source is not a run.
    """
    folders = [Path(text) for text in sources if "=" not in text or Path(text).exists()]
    logs: dict[str, list[Path]] = {}
    for text in (text for text in sources if "=" in text and not Path(text).exists()):
        arm, _, path = text.partition("=")
        logs.setdefault(arm, []).append(Path(path))
    _refuse_duplicates(folders)
    found = [read_run(folder) for folder in folders]
    labels = _labels(folders, [arms[0].framework for _, arms in found], imported=[_IMPORTED] if logs else [])
    runs = [Run(labels[i], folders[i], of, arms) for i, (of, arms) in enumerate(found)]
    if not logs and (recipe or scale):
        raise Fp16PatchError(
            "--recipe and --scale apply to logs only",
            code="invalid-arguments",
            next_step="pass logs as ARM=PATH, or omit --recipe and --scale",
        )
    if not logs:
        return runs
    problems = [not_a_log(path) for paths in logs.values() for path in paths if not path.exists()]
    if recipe is None:
        problems.append(_recipe_not_given(logs))
    if problems or recipe is None:
        raise combine_errors(problems)
    file = find(recipe)
    label = _IMPORTED if runs else ""
    return [*runs, Run(label, None, *_imported(load_at_scale(file, scale)[0], logs))]


def _recipe_not_given(arms: Iterable[str]) -> Fp16PatchError:
    return Fp16PatchError(
        f"--recipe is not given; it is needed for the logs of {', '.join(arms)}",
        code="recipe-not-given",
        allowed="the name or the path of a recipe",
        next_step="add --recipe; `fp16-patch recipes list` lists the names",
    )


def _refuse_duplicates(folders: Sequence[Path]) -> None:
    """Refuse a run directory that is given twice, also by another path."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (earlier := seen.setdefault(folder.resolve(), folder)) is not folder:
            same = "" if earlier == folder else f": it is the same as {earlier}"
            raise Fp16PatchError(
                f"the run directory {folder} is given twice{same}",
                code="run-given-twice",
                next_step="pass each run once",
            )


def _labels(folders: Sequence[Path], frameworks: Sequence[str], imported: Sequence[str]) -> list[str]:
    """Return a unique label for each run directory; an empty one for a single run.

    The label is the framework. If two runs share one, or logs are compared too, it is the folder.
    """
    if len(folders) + len(imported) <= 1:
        return [""] * len(folders)
    names = [folder.resolve().name for folder in folders]
    candidates = [names, [str(folder) for folder in folders], [str(folder.resolve()) for folder in folders]]
    if not imported:
        candidates.insert(0, list(frameworks))
    return next(labels for labels in candidates if len({*labels, *imported}) == len(folders) + len(imported))


def _imported(recipe: Recipe, logs: dict[str, list[Path]]) -> tuple[Recipe, list[ArmRun]]:
    for name in logs:
        if name not in recipe.arms:
            raise Fp16PatchError(
                f"{recipe.name} has no arm {name!r}",
                code="unknown-arm",
                allowed=", ".join(recipe.arms),
                next_step="pass each log as ARM=PATH, with an arm of --recipe",
            )
    return recipe, [_arm(recipe, name, logs[name]) for name in recipe.arms if name in logs]


def _arm(recipe: Recipe, name: str, paths: list[Path]) -> ArmRun:
    metrics = read_logs(name, paths)
    series = build_series(metrics)
    _require_reward(series, metrics, name, paths)
    return ArmRun(
        name=name,
        framework=detect_framework(metrics),
        precision=recipe.arms[name].precision,
        series=series,
        result={},
        precision_report=None,
        imported_from=tuple(paths),
    )


def _require_reward(series: Series, metrics: StepMetrics, name: str, paths: list[Path]) -> None:
    if series.is_logged("reward"):
        return
    logged = list(dict.fromkeys(key for data in metrics.by_step.values() for key in data))
    raise Fp16PatchError(
        f"{name}: no training reward in {', '.join(map(str, paths))}; "
        + (f"there are {', '.join(logged[:8])}" + ", ..." * (len(logged) > 8) if logged else "no step can be read"),
        code="metric-not-found",
        allowed=" or ".join(METRIC_KEYS["reward"]),
        next_step="export the reward too, or add a file with it for the same arm",
    )
