# SPDX-License-Identifier: Apache-2.0
"""List every patch that this package can apply, read from the declarations: ``fp16-patch patches``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

from fp16_patch import text_table
from fp16_patch.patching import Patch, declared_in

COLUMNS: dict[str, Callable[[Patch], str]] = {
    "patch": lambda patch: patch.name,
    "kind": lambda patch: f"{patch.kind}, scoped" if patch.scoped else patch.kind,
    "process": lambda patch: patch.process_names,
    "target": lambda patch: patch.target,
    "releases": lambda patch: f"{patch.release.distributions[0]} {patch.release.versions}",
    "why": lambda patch: patch.reason,
    "upstream": lambda patch: patch.upstream,
    "remove when": lambda patch: patch.remove_when,
}
OF_HOOKS = ("patch", "process", "target", "releases", "why")
"""Columns of a table of hooks. A hook only serves our own report: it needs no upstream link and no removal plan."""
BRIEF = ("patch", "kind", "process", "target", "releases")
PATCHES = "fp16_patch.patches"
"""Entry-point group of further parts. Each entry point is a function that returns a title -> patches mapping."""


def add_parser(subparsers: Any) -> None:
    """Add ``patches`` to the commands."""
    parser = subparsers.add_parser("patches", help="list every patch: process, target, releases")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON; adds reason, upstream link and removal plan")
    form.add_argument("--markdown", action="store_true", help="print the tables of docs/patches.md; adds the same")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the list and return 0."""
    if options.json:
        listed = [
            {"part": part, **{name: cell(patch) for name, cell in COLUMNS.items()}, "hook": patch.hook}
            for part, patches in parts().items()
            for patch in patches
        ]
        print(json.dumps(listed, indent=2))
    elif options.markdown:
        print(as_markdown())
    else:
        for title, header, rows in _tables(BRIEF):
            print(f"{title}\n\n{text_table.plain(header, rows)}\n")
        print("For reasons, upstream links and removal plans: fp16-patch patches --json (or --markdown)")
    return 0


def parts() -> dict[str, list[Patch]]:
    """Return the title of each part of this package, and its patches."""
    from fp16_patch.engines.vllm import precision, sampling
    from fp16_patch.frameworks.openrlhf import plan as openrlhf
    from fp16_patch.frameworks.verl import plan as verl

    in_vllm = declared_in(precision, sampling)
    found = {
        "The flag, on verl": [patch for patch in verl.ALL_PATCHES if patch not in in_vllm],
        "The flag, on OpenRLHF and DeepSpeed": [patch for patch in openrlhf.ALL_PATCHES if patch not in in_vllm],
        "The flag, in vLLM, on both": list(in_vllm),
    }
    for entry_point in metadata.entry_points(group=PATCHES):
        found |= entry_point.load()()
    return found


def as_markdown() -> str:
    """Return the tables of docs/patches.md."""
    tables = _tables(COLUMNS)
    return "\n\n".join(f"## {title}\n\n{text_table.markdown(header, rows)}" for title, header, rows in tables)


def _tables(columns: Iterable[str]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, header and rows: for each part a table of its patches, and one of its hooks."""
    of_hooks = [name for name in columns if name in OF_HOOKS]
    for part, patches in parts().items():
        for title, header, hook in ((part, list(columns), False), (f"{part}: hooks", of_hooks, True)):
            if listed := [patch for patch in patches if patch.hook == hook]:
                yield title, header, [[COLUMNS[name](patch) for name in header] for patch in listed]
