# SPDX-License-Identifier: Apache-2.0
"""Read a run directory: the recipe, and for each arm its result, series and precision report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import ArmFiles
from fp16_patch.lab.arms.settings import comparable, read_settings
from fp16_patch.lab.folder_lock import is_locked
from fp16_patch.lab.loading.load import load
from fp16_patch.lab.logs.series import Series, finite_number, read_series
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.mismatch import log_prob_store
from fp16_patch.mismatch.log_prob_store import LogProbs

_STATUS_WORDS = {
    "interrupted": "was interrupted",
    "running": "still runs",
    "unfinished": "has no result (it was killed, or runs on another machine)",
    "unreadable": "has a result.json that cannot be read",
}
"""Statuses with their meaning, as the end of a sentence about the arm."""
_RESULT_TYPES = {
    "status": str,
    "framework": str | None,
    "error": str | None,
    "seconds": int | float | None,
    "command": str | None,
    "versions": dict | None,
    "beside": int | None,
}
"""The keys of ``result.json`` that are read, with their types."""


@dataclass(frozen=True)
class ArmRun:
    """One arm as found on disk.

    ``result`` is ``result.json``, empty if it is missing or unreadable; then ``status_without_result`` says why.
    ``overflow_report`` exists if too many skipped updates stopped the run. ``command`` is empty if it was not saved,
    and ``settings``, which are independent of the run directory's path, are None.
    ``imported_from`` are the logs of a run that this package did not start. ``log_probs`` are those of both engines, if
    the run saved them.
    """

    name: str
    framework: str
    precision: str
    series: Series
    result: Mapping[str, Any]
    precision_report: Mapping[str, Any] | None
    overflow_report: Mapping[str, Any] | None = None
    log_probs: LogProbs | None = None
    command: str = ""
    settings: Mapping[str, str] | None = None
    imported_from: tuple[Path, ...] = ()
    status_without_result: str = "not run"

    @property
    def status(self) -> str:
        """Completed, failed, timed out, interrupted, running, unfinished, unreadable, not run or imported."""
        if self.imported_from:
            return "imported"
        return str(self.result["status"]) if self.result else self.status_without_result

    @property
    def ended(self) -> bool:
        """Return whether the run reached its last step. An imported run is taken to be complete."""
        return self.status in ("completed", "imported")

    @property
    def skipped_updates(self) -> int | None:
        """Optimizer updates skipped by the loss scaler, or None if not reported."""
        counts = [*self.series.known("updates_skipped_total")[-1:], *self._skipped_at_stop()]
        return round(counts[-1]) if counts else None

    def _skipped_at_stop(self) -> list[float]:
        """Read the count from the overflow report: the step that stops a run logs no metrics."""
        counts = (self.overflow_report or {}).get("counts")
        count = finite_number(counts.get("skipped")) if isinstance(counts, dict) else None
        return [] if count is None else [count]

    def _non_finite(self) -> str:
        found = [f"{name} in {len(bad.steps)} of {bad.logged} steps" for name, bad in self.series.non_finite.items()]
        return f"{', '.join(found)}; means and ratios leave these steps out"

    def notes(self) -> list[str]:
        """Return one line for each thing that is missing."""
        steps = len(self.series.steps)
        if self.imported_from:
            files = ", ".join(map(str, self.imported_from))
            return [f"{self.name} is read from {files}: its settings, and whether it has ended, are not known"]
        if self.status == "not run":
            return [f"{self.name} has not been run"]
        running = self.status == "running"
        problems = {
            f"{_STATUS_WORDS.get(self.status, self.status)} after {steps} steps": self.status != "completed",
            "logged no training step": steps == 0 and not running,
            "logged no mismatch metrics": steps > 0 and not self.series.is_logged("k3_kl"),
            f"logged numbers that are not finite: {self._non_finite()}": self.series.non_finite,
            f"has unreadable lines in metrics.jsonl: {self.series.unreadable_lines}": self.series.unreadable_lines,
            "counts the skipped updates of these steps only": self.status != "completed"
            and self.series.known("updates_skipped_total")
            and not self._skipped_at_stop(),
            "ran concurrently with other arms: its seconds are not those of an arm alone": self.result.get("beside"),
            "has no readable settings.json: its settings are not compared": self.settings is None,
            "left no readable precision report": self.precision_report is None and not running,
        }
        return [f"{self.name} {words}" for words, holds in problems.items() if holds]


class Run(NamedTuple):
    """The arms of one run. ``label`` is unique among the compared runs; ``folder`` is None if it is imported."""

    label: str
    folder: Path | None
    recipe: Recipe
    arms: Sequence[ArmRun]


def read_run(folder: Path) -> tuple[Recipe, list[ArmRun]]:
    """Return the recipe saved in a run directory, and its arms in the recipe's order, run or not.

    Raises:
        Fp16PatchError: ``folder`` is not a run directory.
    """
    recipe_file = folder / "recipe.yaml"
    if not recipe_file.is_file():
        raise _not_a_run_directory(folder)
    try:
        recipe = load(recipe_file)
    except Fp16PatchError as error:
        raise Fp16PatchError(
            f"{recipe_file} is damaged: {error.what}",
            code="run-directory-damaged",
            allowed=error.allowed,
            next_step="restore recipe.yaml as `fp16-patch recipes run` wrote it",
        ) from error
    framework, writing = run_framework(folder, recipe), is_locked(folder)
    return recipe, [
        _read_arm(ArmFiles(folder / name), framework, arm.precision, writing) for name, arm in recipe.arms.items()
    ]


def _not_a_run_directory(folder: Path) -> Fp16PatchError:
    parent = folder.resolve().parent
    if not folder.exists():
        what, next_step = "does not exist", "check the path; `fp16-patch recipes run` prints it"
    elif (parent / "recipe.yaml").is_file():
        what, next_step = "is one arm of a run", f"pass the whole run, {parent}"
    else:
        what = "was not written by `fp16-patch recipes run`: it has no recipe.yaml"
        next_step = f"pass a log of another run as ARM={folder}, with --recipe and --out"
    return Fp16PatchError(
        f"{folder} {what}",
        code="not-a-run-directory",
        allowed="the --out of `fp16-patch recipes run`, or ARM=PATH",
        next_step=next_step,
    )


def _read_arm(files: ArmFiles, framework: str, precision: str, writing: bool) -> ArmRun:
    series, settings = read_series(files.metrics), read_settings(files)
    return ArmRun(
        name=files.folder.name,
        framework=framework,
        precision=precision,
        series=series,
        result=read_result(files),
        precision_report=_read_json(files.precision_report),
        overflow_report=_read_json(files.overflow_report),
        log_probs=log_prob_store.load(files.folder / log_prob_store.FOLDER),
        command=_read_command(files),
        settings=None if settings is None else comparable(settings),
        status_without_result=_status_without_result(files, logged=bool(series.steps), locked=writing),
    )


def _status_without_result(files: ArmFiles, *, logged: bool, locked: bool) -> str:
    """Return the status of an arm whose launcher has not written a readable result.

    ``logged`` says that there are metrics, ``locked`` that a launcher holds the lock of the run directory. An arm logs
    its first step minutes after its start, but the launcher writes its command at the start.
    """
    if files.result.exists():
        return "unreadable"
    if not logged and not files.script.exists():
        return "not run"
    return "running" if locked else "unfinished"


def _read_command(files: ArmFiles) -> str:
    """Return the command, which is saved at launch."""
    try:
        return files.script.read_text(encoding="utf-8").partition("\n")[2].strip()
    except OSError:
        return str(read_result(files).get("command") or "")


def run_framework(folder: Path, recipe: Recipe) -> str:
    """Return the framework of the arms in a run directory, by default the recipe's first one."""
    results = (read_result(ArmFiles(folder / name)) for name in recipe.arms)
    return next((str(result["framework"]) for result in results if result.get("framework")), recipe.frameworks[0])


def read_result(files: ArmFiles) -> dict[str, Any]:
    """Return ``result.json`` of an arm, empty if it is missing or unreadable."""
    found = _read_json(files.result) or {}
    return found if all(isinstance(found.get(key), kind) for key, kind in _RESULT_TYPES.items()) else {}


def _refuse_constant(name: str) -> None:
    """Refuse NaN and infinities, which are not JSON."""
    raise ValueError(name)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("roles", {}), dict):
        return None
    return content if all(isinstance(rows, dict) for rows in content.get("roles", {}).values()) else None
