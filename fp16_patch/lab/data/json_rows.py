# SPDX-License-Identifier: Apache-2.0
"""Read rows from one JSON or JSON Lines file.

The library ``datasets`` is not used here: its errors do not name the line, and it refuses columns of mixed types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a ``.json`` list or of the lines of a ``.jsonl`` file.

    A key that an object lacks is filled with None, as in a parquet file.

    Raises:
        ValueError: If the file cannot be parsed; names the line of a ``.jsonl`` file.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        rows = json.loads(text)
    else:
        rows = [_object(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it does not hold a list of objects")
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{**columns, **row} for row in rows]


def _object(number: int, line: str) -> Any:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not an object")
    return row
