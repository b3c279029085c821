# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch patches``: every patch this package can apply, from the declarations themselves."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fp16_patch.cli import table
from fp16_patch.patching import Patch

HEADER = ("patch", "kind", "process", "target", "releases", "why", "upstream", "remove when")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("patches", help="list every patch: target, releases, reason, removal")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the declarations as JSON")
    form.add_argument("--markdown", action="store_true", help="the table in docs/patches.md")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from fp16_patch.frameworks.verl.plan import ALL_PATCHES

    rows = [row(patch) for patch in ALL_PATCHES]
    if options.json:
        print(json.dumps([dict(zip(HEADER, row, strict=True)) for row in rows], indent=2))
    elif options.markdown:
        print(table.markdown(HEADER, rows))
    else:
        print(table.plain(HEADER[:5], [row[:5] for row in rows]))
        print("\nReasons, upstream links and removal plans: fp16-patch patches --markdown (or --json)")
    return 0


def row(patch: Patch) -> tuple[str, ...]:
    releases = f"{patch.distributions[0]} {patch.versions}"
    head = (patch.name, patch.kind, patch.process, patch.target, releases)
    return (*head, patch.reason, patch.upstream, patch.remove_when)
