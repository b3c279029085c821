# SPDX-License-Identifier: Apache-2.0
"""Rows of one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError

Row = dict[str, Any]
ENDINGS = (".parquet", ".jsonl", ".json")
_BATCH = 1000


def rows(path: Path) -> Iterator[Row]:
    """Raises ``Fp16PatchError`` where it cannot be read, naming the line where it is made of lines."""
    if path.suffix not in ENDINGS:
        raise Fp16PatchError(
            f"--dataset {path} is no dataset",
            code="dataset-unreadable",
            allowed=f"files that end in {', '.join(ENDINGS)}",
        )
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            for batch in parquet.ParquetFile(path).iter_batches(_BATCH):
                yield from batch.to_pylist()
        elif path.suffix == ".json":
            yield from _objects(json.loads(path.read_text(encoding="utf-8")))
        else:
            with path.open(encoding="utf-8") as lines:
                yield from _objects([_line(number, line) for number, line in enumerate(lines, 1) if line.strip()])
    except (OSError, ValueError) as error:  # pyarrow's and json's are ValueErrors
        raise Fp16PatchError(
            f"cannot read --dataset {path}: {error}", code="dataset-unreadable", next_step="fetch or write it again"
        ) from error


def _objects(found: Any) -> list[Row]:
    """A key that a row does not have is one with nothing in it, as in a parquet file."""
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("it does not hold a list of objects")
    columns = dict.fromkeys(key for row in found for key in row)
    return [{**columns, **row} for row in found]


def _line(number: int, line: str) -> Any:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no object")
    return row
