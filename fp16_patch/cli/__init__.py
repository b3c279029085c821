# SPDX-License-Identifier: Apache-2.0
"""The ``fp16-patch`` command."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

import fp16_patch
from fp16_patch import extras
from fp16_patch.errors import Fp16PatchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    from fp16_patch.cli import doctor, patches, run
    from fp16_patch.lab.cli import recipes

    parser = argparse.ArgumentParser(prog="fp16-patch", description=fp16_patch.__doc__)
    parser.add_argument("--version", action="version", version=f"fp16-patch {fp16_patch.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True)
    for command in (doctor, run, patches, recipes):
        command.add_parser(subparsers)
    options, rest = parser.parse_known_args(arguments)
    # argparse gives up on `recipes run NAME --out DIR KEY=VALUE`: values after an option are left over.
    if rest and hasattr(options, "overrides") and all("=" in word and not word.startswith("--") for word in rest):
        options.overrides = [*options.overrides, *rest]
    elif rest and options.command == "run":
        print(run.misplaced(rest[0]), file=sys.stderr)
        return 2
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with extras.required(f"fp16-patch {options.command}"):
            return int(options.run(options) or 0)
    except Fp16PatchError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `fp16-patch patches | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"fp16_patch: {where}{error.strerror}\n  next step: make room, or choose another --out", file=sys.stderr)
        return 2
