# SPDX-License-Identifier: Apache-2.0
"""What a run logged, one mapping a step, out of the files that frameworks and their loggers leave.

A folder of TensorBoard events, a CSV file as wandb's pages export it, or JSON lines: verl's and ours
(``{"step": 1, "data": {...}}``) and rows of wandb's history (``{"_step": 1, "critic/score/mean": 0.5}``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras

_EVENTS = "events.out.tfevents*"
_STEP_NAMES = (
    "train/global_step",  # OpenRLHF counts in its own column, wandb's counts calls
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
class Rows:
    """``by_step`` maps a step to everything logged at it; a name logged twice at one step keeps the later value."""

    by_step: dict[int, dict[str, Any]] = field(default_factory=dict)
    unreadable: int = 0

    def add(self, step: object, data: Mapping[str, Any]) -> None:
        """Raises ValueError or TypeError where ``step`` is no number."""
        names = {_plain(name): value for name, value in data.items()}
        self.by_step.setdefault(int(float(str(step))), {}).update(names)

    def merge(self, other: Rows) -> None:
        self.unreadable += other.unreadable
        for step, data in other.by_step.items():
            self.by_step.setdefault(step, {}).update(data)


def read_rows(path: Path) -> Rows:
    """Raises :class:`Fp16PatchError` where there is nothing at ``path``, or nothing of these kinds."""
    if path.is_dir():
        if (path / "metrics.jsonl").is_file():
            return json_lines(path / "metrics.jsonl")
        return _tensorboard(path)
    readers: dict[str, Callable[[Path], Rows]] = {".csv": _csv, ".jsonl": json_lines, ".ndjson": json_lines}
    reader = _tensorboard if ".tfevents" in path.name else readers.get(path.suffix)
    if reader is None or not path.is_file():
        raise Fp16PatchError(
            f"{path} is no log of a run" if path.exists() else f"there is no {path}",
            code="log-unreadable",
            allowed="a folder of TensorBoard events, a .csv that wandb exported, a .jsonl with a step a line",
        )
    return reader(path)


def json_lines(path: Path) -> Rows:
    """Lines that cannot be read, like the one a run is just writing, are counted."""
    rows = Rows()
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


def _add_flat(rows: Rows, row: Mapping[str, Any]) -> None:
    """A row of wandb's history. It holds null for what was not logged at the step."""
    known = {name: value for name, value in row.items() if value is not None}
    step = next((known[name] for name in _STEP_NAMES if name in known), None)
    rows.add(step, {name: value for name, value in known.items() if name not in _STEP_NAMES})


def _csv(path: Path) -> Rows:
    """Columns are named by the metric, or by the run and the metric where they come from a chart."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return _cells(path, csv.DictReader(file))
        except csv.Error as error:  # NUL, or a cell without end
            raise _no_csv(path, str(error)) from error


def _cells(path: Path, lines: csv.DictReader[str]) -> Rows:
    rows = Rows()
    columns = _columns(path, lines.fieldnames or [])
    for line in lines:
        try:
            _add_flat(rows, {name: _number(line[column]) for column, name in columns.items()})
        except (ValueError, TypeError):
            rows.unreadable += 1
    return rows


def _no_csv(path: Path, why: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"{path} is no CSV file of a run: {why}",
        code="log-unreadable",
        allowed=f"cells between commas under a first line of names, one of them {' or '.join(_STEP_NAMES)}",
        next_step="export it from wandb again",
    )


def _columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    """Column -> metric, without the extremes that wandb puts beside a line of its chart."""
    columns: dict[str, str] = {}
    runs: dict[str, None] = {}
    for column in header:
        run, of_a_chart, metric = column.rpartition(" - ")
        if not column.endswith(_EXTREMES):
            columns[column] = metric
            if of_a_chart:
                runs[run] = None
    if len(runs) > 1:
        raise Fp16PatchError(
            f"{path} holds several runs: {', '.join(runs)}",
            code="log-of-several-runs",
            next_step="export them from wandb one by one, and give each to its arm",
        )
    if not set(_STEP_NAMES).intersection(columns.values()):
        begins = ",".join(header)[:_SHOWN]
        raise _no_csv(path, f"its first line names no steps, it is {begins!r}" if header else "it is empty")
    return columns


def _number(text: str | None) -> float | None:
    """A cell; None where it is empty, or text."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _tensorboard(path: Path) -> Rows:
    folders = sorted({file.parent for file in path.rglob(_EVENTS)}) if path.is_dir() else [path]
    if len(folders) != 1:
        found = f"events of several runs: {', '.join(str(folder.relative_to(path)) for folder in folders)}"
        raise Fp16PatchError(
            f"{path} holds {found if folders else 'neither TensorBoard events nor metrics.jsonl'}",
            code="log-of-several-runs" if folders else "log-unreadable",
            next_step="give the folder of one run",
        )
    with extras.required(f"reading {path}"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folders[0]), size_guidance={"scalars": 0})  # 0: all of them
    events.Reload()
    rows = Rows()
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            rows.add(event.step, {name: event.value})
    return rows


def _plain(name: str) -> str:
    """OpenRLHF's loggers put its names into groups."""
    return next((name.removeprefix(group) for group in _OPENRLHF_GROUPS if name.startswith(group)), name)
