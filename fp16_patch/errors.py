# SPDX-License-Identifier: Apache-2.0
"""Define the one error type that reaches users: what was found, what is allowed, what to do next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")


class Fp16PatchError(RuntimeError):
    """Raised when a run would not do what the flag says, before training starts where possible.

    Args:
        what: What was found, with the key and its value.
        code: The situation in kebab-case, for programs. It stays the same between releases.
        allowed: What would be accepted.
        next_step: The one thing to do.
    """

    def __init__(self, what: str, *, code: str, allowed: str | None = None, next_step: str | None = None) -> None:
        if not _SLUG.fullmatch(code):
            raise ValueError(f"code={code!r} is not a slug such as 'unknown-setting'")
        self.what, self.code, self.allowed, self.next_step = what, code, allowed, next_step
        self.codes: tuple[str, ...] = (code,)
        """The code of every problem that :func:`combine_errors` combined; of a single error only its own."""
        lines = [f"fp16_patch: {what}"]
        if allowed:
            lines.append(f"  allowed: {allowed}")
        if next_step:
            lines.append(f"  next step: {next_step}")
        super().__init__("\n".join(lines))

    def prefixed(self, place: str, next_step: str | None = None) -> Fp16PatchError:
        """Return the same error with ``place: `` before what was found, and ``next_step`` if it has none."""
        what, next_step = f"{place}: {self.what}", self.next_step or next_step
        error = type(self)(what, code=self.code, allowed=self.allowed, next_step=next_step)
        error.codes = self.codes
        return error

    def __reduce__(self) -> tuple[object, ...]:
        # Ray sends exceptions between processes by pickle; the default would lose the keyword arguments.
        make = partial(Fp16PatchError, code=self.code, allowed=self.allowed, next_step=self.next_step)
        return make, (self.what,), {"codes": self.codes}


def as_mapping(error: Fp16PatchError) -> dict[str, str | None]:
    """Return the error's parts, ready for JSON."""
    return {name: getattr(error, name) for name in ("code", "what", "allowed", "next_step")}


def combine_errors(errors: Sequence[Fp16PatchError]) -> Fp16PatchError:
    """Combine errors into one, so that a user corrects a configuration once and not key by key."""
    errors = list({str(error): error for error in errors}.values())
    if len(errors) == 1:
        return errors[0]
    body = "\n".join(str(e).replace("fp16_patch: ", "- ", 1) for e in errors)
    combined = Fp16PatchError(f"{len(errors)} problems, nothing was started:\n{body}", code="several-problems")
    combined.codes = tuple(code for error in errors for code in error.codes)
    return combined
