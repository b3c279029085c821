# SPDX-License-Identifier: Apache-2.0
"""Parse the command line; every mistake in it is one :class:`Fp16PatchError`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from fp16_patch.errors import Fp16PatchError

_MESSAGE = re.compile(r"(?:argument )?(.*?)(?:; allowed: (.*)| \(choose from (.*)\))?", re.DOTALL)
"""argparse's messages, and those of argument types that end in ``; allowed: ...``."""


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`Fp16PatchError`, and accepts ``KEY=VALUE`` on both sides of the options.

    argparse itself takes such words before the options only.
    """

    misplaced: Callable[[str], Fp16PatchError] | None = None
    """Makes the error for an unknown word, if the command has its own."""

    def error(self, message: str) -> NoReturn:
        """Raise the error. It names the argument, its value, what is allowed, and the help of this command."""
        found = _MESSAGE.fullmatch(message)
        what, *allowed = found.groups() if found else (message,)
        raise Fp16PatchError(
            what,
            code="invalid-arguments",
            allowed=next(filter(None, allowed), None),
            next_step=f"correct it; {self.prog} --help lists the arguments",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options and an empty list, as each command refuses what it does not know."""
        options, unknown = super().parse_known_args(args, namespace)
        if "overrides" in options and all("=" in word and not word.startswith("--") for word in unknown):
            options.overrides, unknown = [*options.overrides, *unknown], []
        if unknown and self.misplaced:
            raise self.misplaced(unknown[0])
        if unknown:
            self.error(f"unknown arguments: {' '.join(unknown)}")
        return options, unknown
