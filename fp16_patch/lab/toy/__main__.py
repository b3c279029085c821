# SPDX-License-Identifier: Apache-2.0
"""Build the toy task and print a summary: ``python -m fp16_patch.lab.toy --out DIR``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras
from fp16_patch.lab.toy.settings import TOY_TASKS
from fp16_patch.lab.toy.toy_task import build


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fp16_patch.lab.toy", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the policy and its problems (default 0)")
    parser.add_argument(
        "--world",
        choices=TOY_TASKS,
        default="toy",
        help="toy-moe: experts; toy-long: longer answers",
    )
    arguments = parser.parse_args()
    started = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - started:4.0f}s] {line}", flush=True)

    try:
        with extras.required("the toy task"):
            task = build(arguments.out, arguments.seed, progress, TOY_TASKS[arguments.world])
    except Fp16PatchError as error:
        print(error, file=sys.stderr)
        return 1
    facts, before = task.manifest, task.manifest["accuracy_before"]
    print(f"{task.model}: {facts['parameters'] / 1e6:.2f}M parameters, {facts['supervised_steps']} steps")
    print(f"{task.train}: {facts['train']} problems, {before['train']:.0%} of samples right")
    print(f"{task.val}: {facts['val']} problems, {before['val']:.0%} of samples right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
