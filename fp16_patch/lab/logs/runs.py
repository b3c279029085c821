# SPDX-License-Identifier: Apache-2.0
"""What a run directory holds: the recipe, and for each arm its result, series and precision report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.folder_lock import in_use
from fp16_patch.lab.launch.arm_status import WORDS, standing
from fp16_patch.lab.launch.command import ArmFiles
from fp16_patch.lab.logs.series import Series, number, read_series
from fp16_patch.lab.recipes.load import load
from fp16_patch.lab.recipes.schema import Recipe
from fp16_patch.mismatch import log_prob_store as kept
from fp16_patch.mismatch.log_prob_store import Kept

_STATUS_WORDS = {"interrupted": "was interrupted", **WORDS}
_RESULT = {
    "status": str,
    "framework": str | None,
    "error": str | None,
    "seconds": int | float | None,
    "command": str | None,
    "versions": dict | None,
    "beside": int | None,
}
"""What of the launcher's record is read, with its types."""


@dataclass(frozen=True)
class ArmRun:
    """One arm as found on disk. ``result`` is the launcher's record, empty where there is none that can be read, and
    ``standing`` says why.

    ``overflow_report`` is there where too many skipped updates stopped it. ``command`` is the one it was started with,
    empty where that is not kept; ``imported_from`` are the files of a run that the launcher did not start.
    """

    name: str
    framework: str
    precision: str
    series: Series
    result: Mapping[str, Any]
    precision_report: Mapping[str, Any] | None
    overflow_report: Mapping[str, Any] | None = None
    kept: Kept | None = None
    """The log-probs of both engines, where the run kept them."""
    command: str = ""
    imported_from: tuple[Path, ...] = ()
    standing: str = "not run"

    @property
    def status(self) -> str:
        """completed, failed, timed out, interrupted, running, unfinished, unreadable, not run or imported."""
        if self.imported_from:
            return "imported"
        return str(self.result["status"]) if self.result else self.standing

    @property
    def ended(self) -> bool:
        """Its last step is the last one it was to have. An imported run is taken to be whole."""
        return self.status in ("completed", "imported")

    @property
    def skipped_updates(self) -> int | None:
        """Optimizer updates skipped by the loss scaler; None where nothing was reported of them."""
        counts = [*self.series.known("updates_skipped_total")[-1:], *self._skipped_at_stop()]
        return round(counts[-1]) if counts else None

    def _skipped_at_stop(self) -> list[float]:
        """The step that stops a run logs no metrics."""
        counts = (self.overflow_report or {}).get("counts")
        count = number(counts.get("skipped")) if isinstance(counts, dict) else None
        return [] if count is None else [count]

    def notes(self) -> list[str]:
        """What is missing, in words."""
        steps = len(self.series.steps)
        if self.imported_from:
            files = ", ".join(map(str, self.imported_from))
            return [f"{self.name} is read from {files}: its settings, and whether it has ended, are not known"]
        if self.status == "not run":
            return [f"{self.name} has not been run"]
        running = self.status == "running"
        doubts = {
            f"{_STATUS_WORDS.get(self.status, self.status)} after {steps} steps": self.status != "completed",
            "logged no training step": steps == 0 and not running,
            "logged no mismatch metrics": steps > 0 and not self.series.known("k3_kl"),
            f"has unreadable lines in metrics.jsonl: {self.series.unreadable_lines}": self.series.unreadable_lines,
            "counts the skipped updates of these steps only": self.status not in ("completed", "not run")
            and bool(self.series.known("updates_skipped_total"))
            and not self._skipped_at_stop(),
            "ran beside other arms: its seconds are not those of an arm alone": bool(self.result.get("beside")),
            "left no readable precision report": self.precision_report is None and not running,
        }
        return [f"{self.name} {words}" for words, holds in doubts.items() if holds]


def read_run(folder: Path) -> tuple[Recipe, list[ArmRun]]:
    """The recipe kept in a run directory, and its arms in the recipe's order, run or not.

    Raises :class:`Fp16PatchError` when ``folder`` is not a run directory.
    """
    recipe_file = folder / "recipe.yaml"
    if not recipe_file.is_file():
        of_an_arm = (folder.resolve().parent / "recipe.yaml").is_file()
        raise Fp16PatchError(
            f"{folder} is not a run directory: it has no recipe.yaml",
            code="not-a-run-directory",
            next_step=f"give the whole run, {folder.resolve().parent}"
            if of_an_arm
            else "give the folder that `fp16-patch recipes run` wrote to, or a log as ARM=PATH with --recipe",
        )
    try:
        recipe = load(recipe_file)
    except Fp16PatchError as error:
        raise Fp16PatchError(
            f"the recipe kept in {folder} is damaged: {error.what}",
            code="run-directory-damaged",
            allowed=error.allowed,
            next_step="put recipe.yaml back there as `fp16-patch recipes run` wrote it",
        ) from error
    framework, writing = framework_of(folder, recipe), in_use(folder)
    return recipe, [
        _read_arm(ArmFiles(folder / name), framework, arm.precision, writing) for name, arm in recipe.arms.items()
    ]


def _read_arm(files: ArmFiles, framework: str, precision: str, writing: bool) -> ArmRun:
    series = read_series(files.metrics)
    return ArmRun(
        name=files.folder.name,
        framework=framework,
        precision=precision,
        series=series,
        result=result_of(files),
        precision_report=_read_json(files.precision_report),
        overflow_report=_read_json(files.overflow_report),
        kept=kept.read(files.folder / kept.FOLDER),
        command=_command(files),
        standing=standing(files, logged=bool(series.steps), in_use=writing),
    )


def _command(files: ArmFiles) -> str:
    """The arm's command, which the launcher keeps from the start."""
    try:
        return files.script.read_text(encoding="utf-8").partition("\n")[2].strip()
    except OSError:
        return str(result_of(files).get("command") or "")


def framework_of(folder: Path, recipe: Recipe) -> str:
    """The framework that the arms in a run directory ran on; the recipe's first one where none has ended yet."""
    results = (result_of(ArmFiles(folder / name)) for name in recipe.arms)
    return next((str(result["framework"]) for result in results if result.get("framework")), recipe.frameworks[0])


def result_of(files: ArmFiles) -> dict[str, Any]:
    """The launcher's record of an arm; empty where it left none that can be read."""
    found = _read_json(files.result) or {}
    return found if all(isinstance(found.get(key), kind) for key, kind in _RESULT.items()) else {}


def _no_number(word: str) -> None:
    """NaN and infinities are no JSON; nothing of ours writes them."""
    raise ValueError(word)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("roles", {}), dict):
        return None
    return content if all(isinstance(rows, dict) for rows in content.get("roles", {}).values()) else None
