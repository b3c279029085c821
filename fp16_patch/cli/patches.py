# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch patches``: every patch this package can apply, from the declarations themselves."""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from typing import Any

from fp16_patch import text_table
from fp16_patch.patching import Patch

HEADER = ("patch", "kind", "process", "target", "releases", "why", "upstream", "remove when")
PATCHES = "fp16_patch.patches"
"""Entry-point group of further parts: each entry point is a function that returns titles with their patches."""
Row = tuple[str, ...]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("patches", help="list every patch: target, releases, reason, removal")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the declarations as JSON")
    form.add_argument("--markdown", action="store_true", help="the table in docs/patches.md")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.json:
        listed = [
            {"part": part, **dict(zip(HEADER, row, strict=True))} for part, rows in parts().items() for row in rows
        ]
        print(json.dumps(listed, indent=2))
    elif options.markdown:
        print(as_markdown())
    else:
        for part, rows in parts().items():
            print(f"{part}\n\n{text_table.plain(HEADER[:5], [row[:5] for row in rows])}\n")
        print("Reasons, upstream links and removal plans: fp16-patch patches --markdown (or --json)")
    return 0


def parts() -> dict[str, list[Row]]:
    """Return the title of each part of this package, and a row for each of its patches."""
    from fp16_patch.frameworks.openrlhf import plan as openrlhf
    from fp16_patch.frameworks.verl import plan as verl

    found = {"The flag, on verl": verl.ALL_PATCHES, "The flag, on OpenRLHF and DeepSpeed": openrlhf.ALL_PATCHES}
    for entry_point in metadata.entry_points(group=PATCHES):
        found |= entry_point.load()()
    return {title: [_row(patch) for patch in patches] for title, patches in found.items()}


def as_markdown() -> str:
    """The tables of docs/patches.md."""
    return "\n\n".join(f"## {part}\n\n{text_table.markdown(HEADER, rows)}" for part, rows in parts().items())


def _row(patch: Patch) -> Row:
    releases = f"{patch.distributions[0]} {patch.versions}"
    head = (patch.name, patch.kind, patch.process_names, patch.target, releases)
    return (*head, patch.reason, patch.upstream, patch.remove_when)
