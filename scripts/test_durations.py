# SPDX-License-Identifier: Apache-2.0
"""Write ``tests/durations.json`` and ``docs/test-durations.md`` from one run of ``pytest --junit-xml=FILE``.

``python scripts/test_durations.py FILE "how it was measured"``. tests/conftest.py starts the longest folders first.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "tests" / "durations.json", ROOT / "docs" / "test-durations.md"
SLOWEST = 30


def read(junit: Path) -> list[tuple[str, str, float]]:
    """Return (file, test, seconds) of each test case; setup and teardown are included."""
    cases = []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        parts = case.get("classname", "").split(".")
        while parts and not (ROOT / f"{'/'.join(parts)}.py").exists():  # a class of tests
            parts.pop()
        cases.append((f"{'/'.join(parts)}.py", case.get("name", ""), float(case.get("time", 0))))
    return cases


def summarize(cases: list[tuple[str, str, float]], measured: str) -> dict[str, Any]:
    """Return the record: seconds and number of tests of each folder, and the slowest tests."""
    durations: defaultdict[str, list[float]] = defaultdict(list)
    for file, _, duration in cases:
        durations[file.rpartition("/")[0]].append(duration)
    longest = sorted(durations.items(), key=lambda item: -sum(item[1]))
    slowest = sorted(cases, key=lambda case: -case[2])[:SLOWEST]
    return {
        "measured": measured,
        "folders": {name: {"seconds": round(sum(each)), "tests": len(each)} for name, each in longest},
        "slowest": {f"{file}::{test}": round(duration) for file, test, duration in slowest},
    }


def page(record: dict[str, Any]) -> str:
    """Return the record as a Markdown page."""
    folders = [f"| `{name}` | {row['tests']} | {row['seconds']} |" for name, row in record["folders"].items()]
    slowest = [f"| `{name.rpartition('/')[2]}` | {seconds} |" for name, seconds in record["slowest"].items()]
    total = sum(row["seconds"] for row in record["folders"].values())
    return "\n".join(
        [
            "# How long the tests take",
            "",
            'Written by `python scripts/test_durations.py JUNIT.xml "how it was measured"`; do not edit.',
            "`make test` runs two folders at a time and starts the longest first.",
            "",
            f"{record['measured']} Sum: {total} s.",
            "",
            "| folder | tests | seconds |",
            "|---|---|---|",
            *folders,
            "",
            f"The {len(slowest)} slowest tests. A test includes the setup that its folder shares.",
            "",
            "| test | seconds |",
            "|---|---|",
            *slowest,
            "",
        ]
    )


def main() -> None:
    """Write both files."""
    record = summarize(read(Path(sys.argv[1])), sys.argv[2])
    DATA.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
