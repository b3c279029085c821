# SPDX-License-Identifier: Apache-2.0
"""``python -m fp16_patch.lab.toy --out DIR``: build the toy world and say what it holds."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras
from fp16_patch.lab.toy.world import WORLDS, build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fp16_patch.lab.toy", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another world (default 0)")
    parser.add_argument(
        "--world",
        choices=WORLDS,
        default="toy",
        help="toy-moe: experts; toy-long: longer answers",
    )
    arguments = parser.parse_args()
    started = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - started:4.0f}s] {line}", flush=True)

    try:
        with extras.required("the toy world"):
            world = build(arguments.out, arguments.seed, progress, WORLDS[arguments.world])
    except Fp16PatchError as error:
        print(error, file=sys.stderr)
        return 1
    facts, before = world.manifest, world.manifest["accuracy_before"]
    print(f"{world.model}: {facts['parameters'] / 1e6:.2f}M parameters, {facts['supervised_steps']} steps")
    print(f"{world.train}: {facts['train']} problems, {before['train']:.0%} of samples right")
    print(f"{world.val}: {facts['val']} problems, {before['val']:.0%} of samples right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
