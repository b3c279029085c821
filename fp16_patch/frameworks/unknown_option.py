# SPDX-License-Identifier: Apache-2.0
"""The error for an option that a framework does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fp16_patch.errors import Fp16PatchError


def unknown_option(word: str, framework: str, known: Iterable[str], advice: str = "correct it") -> Fp16PatchError:
    """Return the error for ``word``, which sets an option that the framework does not have."""
    key = word.partition("=")[0].lstrip("-")
    close = difflib.get_close_matches(key, known, n=3)
    return Fp16PatchError(
        f"{word}: {framework} has no option {key}",
        code="configuration-refused",
        allowed=f"the options of {framework}" + (f", such as {', '.join(close)}" if close else ""),
        next_step=f"did you mean {close[0]}?" if close else advice,
    )
