# SPDX-License-Identifier: Apache-2.0
"""Parse the command line; every mistake in it is one :class:`Fp16PatchError`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from typing import Any, NoReturn

from fp16_patch.errors import Fp16PatchError


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`Fp16PatchError`, and accepts ``KEY=VALUE`` on both sides of the options.

    argparse itself takes such words before the options only.
    """

    check_unknown: Callable[[list[str]], None] | None = None
    """Raises the error for unknown words, if the command has its own."""

    def error(self, message: str, close: str | None = None) -> NoReturn:
        """Raise the error. It names the argument, its value, what is allowed, and ``close`` or this command's help.

        ``message`` is argparse's, or that of an argument type, which ends in ``; allowed: ...``.
        """
        what, _, allowed = message.removeprefix("argument ").partition("; allowed: ")
        hint = f"did you mean {close}?" if close else f"{self.prog} --help lists the arguments"
        raise Fp16PatchError(what, code="invalid-arguments", allowed=allowed or None, next_step=f"correct it; {hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = [str(choice) for choice in action.choices or ()]
        if choices and value not in choices:
            name = "/".join(action.option_strings) or "command"
            close = difflib.get_close_matches(str(value), choices, n=1)
            self.error(f"{name}: {value!r}; allowed: {', '.join(choices)}", *close)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options and an empty list, as each command refuses what it does not know."""
        options, unknown = super().parse_known_args(args, namespace)
        if "overrides" in options and all("=" in word and not word.startswith("--") for word in unknown):
            options.overrides, unknown = [*options.overrides, *unknown], []
        if unknown and self.check_unknown:
            self.check_unknown(unknown)
        if unknown:
            self.error(f"unknown arguments: {' '.join(unknown)}")
        return options, unknown
