# SPDX-License-Identifier: Apache-2.0
"""Name every setting and refuse a misspelt one before a framework is imported or Hydra composes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.precision.loss_scaling import LossScaling
from fp16_patch.precision.precision import PRECISIONS, Precision
from fp16_patch.precision.setting_values import check_repeated

FLAG = "+precision@_global_"
PREFIX = "fp16_patch."
GROUP = f"{PREFIX}loss_scaling"
"""Takes no value of its own on a command line, but a group of them: ``{init_scale:1024}``."""
LEAVES = (
    *(f"{PREFIX}{field.name}" for field in fields(Precision) if field.name != "loss_scaling"),
    f"{PREFIX}report_path",
    *(f"{GROUP}.{field.name}" for field in fields(LossScaling)),
)
NAMES = (*LEAVES, GROUP)


def check_settings(settings: Sequence[str]) -> None:
    """Check the words before the ``--`` of ``fp16-patch run``.

    Raises:
        Fp16PatchError: If a word is not ``fp16_patch.<name>=<value>`` of a known setting, its value cannot be read, or
            a setting has two values.
    """
    for word in settings:
        if not word.startswith(PREFIX) or "=" not in word:
            what, next_step = "comes before the -- and is not a setting of this package", "put the command after the --"
            if word in NAMES:
                what, next_step = "is a setting without a value", f"write {word}=<value>"
            raise Fp16PatchError(
                f"{word!r} {what}",
                code="setting-misplaced",
                allowed="fp16_patch.<name>=<value>, such as fp16_patch.loss_scaling.init_scale=1024",
                next_step=next_step,
            )
    check_overrides(settings)
    check_repeated(settings)


def check_overrides(words: Iterable[str]) -> None:
    """Check the words of a command line that begin with ``fp16_patch.``, and the flag; ignore the others.

    Hydra's own error would advise to add the key with a ``+``, or list its search path.

    Raises:
        Fp16PatchError: If a setting or the flag's precision is unknown; names every one.
    """
    problems = []
    for word in words:
        chosen = word.removeprefix(f"{FLAG}=")
        if chosen != word and chosen.isalnum() and chosen not in (*PRECISIONS, "null"):
            problems.append(
                Fp16PatchError(
                    f"{word} is not a precision",
                    code="not-a-precision",
                    allowed=", ".join(PRECISIONS),
                    next_step=f"set {FLAG}=fp16",
                )
            )
        name = word.lstrip("+").partition("=")[0]
        if name.startswith(PREFIX) and name not in NAMES:
            known = (
                [leaf for leaf in LEAVES if leaf.startswith(f"{GROUP}.")] if name.startswith(f"{GROUP}.") else LEAVES
            )
            close = _closest(name, known) or _closest(name, LEAVES)
            problems.append(
                Fp16PatchError(
                    f"{word!r} is not a setting of this package",
                    code="unknown-setting",
                    allowed=", ".join(known),
                    next_step=f"did you mean {close}?" if close else "correct the spelling, or remove it",
                )
            )
    if problems:
        raise combine_errors(problems)


def _closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name whose last part is most like that of ``name``, if one is close."""
    ends = {one.rpartition(".")[2]: one for one in known}
    close = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1, cutoff=0.75)
    return ends[close[0]] if close else None
