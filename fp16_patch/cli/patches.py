# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch patches``: every patch this package can apply, from the declarations themselves."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fp16_patch import text_table
from fp16_patch.patching import Patch

HEADER = ("patch", "kind", "process", "target", "releases", "why", "upstream", "remove when")
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
    """Part of this package -> its patches, a row each."""
    from fp16_patch.frameworks.openrlhf import plan as openrlhf_plan
    from fp16_patch.frameworks.verl.plan import ALL_PATCHES
    from fp16_patch.lab.cpu.plan import MEGATRON_PATCHES, OPENRLHF_PATCHES, PATCHES
    from fp16_patch.lab.cpu.rounded_rollout import PATCHES as SIGNIFICAND
    from fp16_patch.lab.cpu.torch_cuda import MEGATRON_PATCHES as TORCH_CUDA

    flag = [_row(patch) for patch in ALL_PATCHES]
    verl = [row for patch in PATCHES if (row := _row(patch)) not in flag]
    openrlhf = [_row(patch) for patch in OPENRLHF_PATCHES]
    megatron = [_row(patch) for patch in (*TORCH_CUDA, *MEGATRON_PATCHES)]
    both = [row for row in openrlhf if row in verl or row in megatron]
    return {
        "The flag, on verl": flag,
        "The flag, on OpenRLHF and DeepSpeed": [_row(patch) for patch in openrlhf_plan.ALL_PATCHES],
        "The CPU platform on verl, where it is asked for": [row for row in verl if row not in both],
        "The CPU platform on verl with Megatron": [row for row in megatron if row not in both],
        "The CPU platform on OpenRLHF, where it is asked for": [row for row in openrlhf if row not in both],
        "The CPU platform on either": both,
        "The CPU platform, an instrument for experiments": [_row(patch) for patch in SIGNIFICAND],
    }


def as_markdown() -> str:
    """The tables of docs/patches.md."""
    return "\n\n".join(f"## {part}\n\n{text_table.markdown(HEADER, rows)}" for part, rows in parts().items())


def _row(patch: Patch) -> Row:
    releases = f"{patch.distributions[0]} {patch.versions}"
    head = (patch.name, patch.kind, patch.process_names, patch.target, releases)
    return (*head, patch.reason, patch.upstream, patch.remove_when)
