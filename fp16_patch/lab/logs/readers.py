# SPDX-License-Identifier: Apache-2.0
"""Read the logs that frameworks write, as one mapping of metrics per step.

Formats: a folder of TensorBoard events, a CSV file exported from wandb, or JSON lines, either verl's and ours
(``{"step": 1, "data": {...}}``) or rows of wandb's history (``{"_step": 1, "critic/score/mean": 0.5}``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras

_EVENTS = "events.out.tfevents*"
_STEP_NAMES = (
    "train/global_step",  # OpenRLHF counts steps here; wandb's _step counts calls
    "eval/global_step",
    "step",
    "_step",
    "Step",
    "global_step",
    "training/global_step",
)
_OPENRLHF_GROUPS = ("train/", "eval/")
_EXTREMES = ("__MIN", "__MAX")
_SHOWN = 60


@dataclass
class StepMetrics:
    """The metrics of each step. If a name is logged twice at a step, the later value wins.

    ``unreadable`` counts the lines that could not be read.
    """

    by_step: dict[int, dict[str, Any]] = field(default_factory=dict)
    unreadable: int = 0

    def add(self, step: object, data: Mapping[str, Any]) -> None:
        """Add what was logged at ``step``.

        Raises:
            ValueError, TypeError: ``step`` is not a number.
        """
        names = {_without_group(name): value for name, value in data.items()}
        self.by_step.setdefault(int(float(str(step))), {}).update(names)


def read_log(path: Path) -> StepMetrics:
    """Read a log in any of the formats above.

    Raises:
        Fp16PatchError: ``path`` does not exist, or has none of these formats.
    """
    if (path / "metrics.jsonl").is_file():
        return read_json_lines(path / "metrics.jsonl")
    if path.is_dir() or (path.is_file() and ".tfevents" in path.name):
        return _tensorboard(path)
    readers = {".csv": _csv, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
    if path.suffix not in readers or not path.is_file():
        raise not_a_log(path)
    return readers[path.suffix](path)


def not_a_log(path: Path) -> Fp16PatchError:
    """Return the error for a ``path`` that does not exist or has none of the formats."""
    exists = path.exists()
    return Fp16PatchError(
        f"{path} is not a log of a run" if exists else f"log {path} does not exist",
        code="log-unreadable",
        allowed="a folder of TensorBoard events, a .csv exported from wandb, a .jsonl with one step per line",
        next_step="export the metrics of the run in one of these formats" if exists else "check the path",
    )


def read_json_lines(path: Path) -> StepMetrics:
    """Read JSON lines. Lines that cannot be read, like one being written, are counted."""
    rows = StepMetrics()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            if "data" in row:
                rows.add(row["step"], row["data"])
            else:
                _add_flat(rows, row)
        except (ValueError, KeyError, TypeError, AttributeError):
            rows.unreadable += 1
    return rows


def _add_flat(rows: StepMetrics, row: Mapping[str, Any]) -> None:
    """Add a row of wandb's history. Null means not logged at this step."""
    known = {name: value for name, value in row.items() if value is not None}
    step = next((known[name] for name in _STEP_NAMES if name in known), None)
    rows.add(step, {name: value for name, value in known.items() if name not in _STEP_NAMES})


def _csv(path: Path) -> StepMetrics:
    """Read a CSV file. Columns are named by the metric, or in a chart by run and metric."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            lines = csv.DictReader(file)
            columns = _columns(path, lines.fieldnames or [])
            cells = [{name: _number(line[column]) for column, name in columns.items()} for line in lines]
        except csv.Error as error:  # a NUL byte, or an unclosed quote
            raise _csv_error(path, str(error)) from error
    rows = StepMetrics()
    for row in cells:
        try:
            _add_flat(rows, row)
        except (ValueError, TypeError):
            rows.unreadable += 1
    return rows


def _csv_error(path: Path, why: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"{path} is not a CSV file of a run: {why}",
        code="log-unreadable",
        allowed=f"comma-separated cells under a header with a column {' or '.join(_STEP_NAMES)}",
        next_step="export it from wandb again",
    )


def _columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    """Return {column: metric}, without the minimum and maximum columns of wandb's charts."""
    parts = {column: column.rpartition(" - ") for column in header if not column.endswith(_EXTREMES)}
    columns = {column: metric for column, (_, _, metric) in parts.items()}
    runs = dict.fromkeys(run for run, separator, _ in parts.values() if separator)
    if len(runs) > 1:
        raise Fp16PatchError(
            f"{path} holds several runs: {', '.join(runs)}",
            code="log-of-several-runs",
            next_step="export each run separately from wandb, and pass each to its arm",
        )
    if not set(_STEP_NAMES).intersection(columns.values()):
        first_line = ",".join(header)[:_SHOWN]
        raise _csv_error(path, f"its first line has no column of steps: {first_line!r}" if header else "it is empty")
    return columns


def _number(text: str | None) -> float | None:
    """Return a cell's number, or None if it is empty or text."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _tensorboard(path: Path) -> StepMetrics:
    folders = sorted({file.parent for file in path.rglob(_EVENTS)}) if path.is_dir() else [path]
    if len(folders) != 1:
        found = f"events of several runs: {', '.join(str(folder.relative_to(path)) for folder in folders)}"
        raise Fp16PatchError(
            f"{path} holds {found if folders else 'neither TensorBoard events nor metrics.jsonl'}",
            code="log-of-several-runs" if folders else "log-unreadable",
            next_step="pass the folder of one run",
        )
    with extras.required(f"reading {path}"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folders[0]), size_guidance={"scalars": 0})  # 0: all of them
    events.Reload()
    rows = StepMetrics()
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            rows.add(event.step, {name: event.value})
    return rows


def _without_group(name: str) -> str:
    """Remove the group that OpenRLHF's loggers put in front of a name."""
    return next((name.removeprefix(group) for group in _OPENRLHF_GROUPS if name.startswith(group)), name)
