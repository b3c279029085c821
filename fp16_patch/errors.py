# SPDX-License-Identifier: Apache-2.0
"""The one error type that reaches users: what was found, what is allowed, what to do next."""

from __future__ import annotations

from collections.abc import Sequence


class Fp16PatchError(RuntimeError):
    """Something would break the promise of the flag. Raised before training starts wherever possible.

    ``what`` is the finding, naming the key and its value; ``allowed`` says what would be accepted;
    ``next_step`` is the one thing to do about it.
    """

    def __init__(self, what: str, *, allowed: str | None = None, next_step: str | None = None) -> None:
        self.what, self.allowed, self.next_step = what, allowed, next_step
        lines = [f"fp16_patch: {what}"]
        if allowed:
            lines.append(f"  allowed: {allowed}")
        if next_step:
            lines.append(f"  next step: {next_step}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        # Ray sends exceptions between processes by pickle; the default would lose the keyword arguments.
        return _rebuild, (type(self), self.what, self.allowed, self.next_step)


def _rebuild(cls: type[Fp16PatchError], what: str, allowed: str | None, next_step: str | None) -> Fp16PatchError:
    error = cls.__new__(cls)
    Fp16PatchError.__init__(error, what, allowed=allowed, next_step=next_step)
    return error


def several(errors: Sequence[Fp16PatchError]) -> Fp16PatchError:
    """One error out of many, so that a user mends a configuration once and not key by key."""
    errors = list({str(error): error for error in errors}.values())
    if len(errors) == 1:
        return errors[0]
    body = "\n".join(str(e).replace("fp16_patch: ", "- ", 1) for e in errors)
    return Fp16PatchError(f"{len(errors)} problems, nothing was started:\n{body}")
