# SPDX-License-Identifier: Apache-2.0
"""The ``fp16-patch`` command."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata

import fp16_patch
from fp16_patch.errors import Fp16PatchError, as_mapping

COMMANDS = "fp16_patch.commands"
"""Entry-point group of further commands; each entry point is a function that adds its parser to the subparsers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script and return its exit status."""
    from fp16_patch.cli import doctor, patches, run
    from fp16_patch.cli.arguments import Parser

    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser(prog="fp16-patch", description=fp16_patch.__doc__)
    parser.add_argument("--version", action="version", version=f"fp16-patch {fp16_patch.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True)
    for command in (doctor, run, patches):
        command.add_parser(subparsers)
    if not words or words[0] not in subparsers.choices:
        for entry_point in metadata.entry_points(group=COMMANDS):
            entry_point.load()(subparsers)
    after_dashes = None
    if words[:1] in (["run"], ["doctor"]) and "--" in words:  # argparse removes one --, and not always the first
        at = words.index("--")
        words, after_dashes = words[:at], words[at + 1 :]
    try:
        _check_folder()
        options = parser.parse_args(words)
        options.command_words = after_dashes
        return int(options.run(options) or 0)
    except Fp16PatchError as error:
        print(error, file=sys.stderr)
        if words[:1] == ["doctor"] and "--json" in words:
            print(json.dumps({"error": as_mapping(error)}, indent=2))
        return 2
    except KeyboardInterrupt:
        print("fp16_patch: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fp16-patch patches | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"fp16_patch: {where}{error.strerror}\n  next step: free disk space{_OTHER_FOLDER.get(words[0], '')}",
            file=sys.stderr,
        )
        return 2


_OTHER_FOLDER = {"recipes": ", or choose another --out"}
"""Command -> what else helps when the disk is full."""


def _check_folder() -> None:
    """Raise an error if the working directory was deleted: Python cannot read a relative path then."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise Fp16PatchError(
            "the working directory does not exist; it was deleted or moved",
            code="file-not-found",
            next_step="change to a folder that exists: cd ~",
        ) from error
