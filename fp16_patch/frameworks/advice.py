# SPDX-License-Identifier: Apache-2.0
"""Say how the flag gets onto a command that ``fp16-patch run`` does not start itself: scripts, ``uv run``, Ray jobs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.user_command import OPENRLHF, SHELLS, VERL, UserCommand, find
from fp16_patch.precision.setting_names import FLAG, PREFIX

ALLOWED = " or ".join(f"python -m {name} ..." for name in (*OPENRLHF, *VERL))
_RANK_STARTERS = ("torchrun", "accelerate", "deepspeed", "mpirun")
_PRINTING = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc")
PAGE = "docs/your-command.md"


def command_not_supported(words: Sequence[str], settings: Sequence[str]) -> Fp16PatchError:
    """Return the error for a command that ``fp16-patch run`` cannot start, with the way that fits."""
    found = find(words)
    if found is None and (script := shell_script(words)):
        return in_script(script, words, settings)
    if found is not None and found.module in (*VERL, *OPENRLHF) and found.wrapper:
        return _inside_another_program(found, settings)
    if found is not None and found.module.startswith("openrlhf.") and found.module not in OPENRLHF:
        return other_main(found.module)
    at = list(words).index("-m") + 2 if "-m" in words else len(words)
    step = "with `ray job submit`, fp16-patch run goes inside. Start other programs without fp16-patch"
    if words and Path(words[0]).name in _RANK_STARTERS and any(module in words for module in (*VERL, *OPENRLHF)):
        step = "without torchrun and the like: Ray starts the ranks"
    return Fp16PatchError(
        f"{' '.join(words[:at]) or 'an empty command'} is not a command of a supported trainer",
        code="command-not-supported",
        allowed=ALLOWED,
        next_step=f"give the trainer's own command after the --; {step}",
    )


def other_main(module: str) -> Fp16PatchError:
    """Return the error for a main of OpenRLHF that the flag does not support."""
    return Fp16PatchError(
        f"python -m {module}: of OpenRLHF's mains the flag supports {OPENRLHF[0]} only",
        code="command-not-supported",
        allowed=ALLOWED,
        next_step=f"start {module} without fp16-patch",
    )


def trains_nothing(arguments: Sequence[str]) -> str | None:
    """Return the option with which the trainer only prints something, or None."""
    return next((word for word in arguments if word.partition("=")[0] in _PRINTING), None)


def check_openrlhf_arguments(settings: Sequence[str], arguments: Sequence[str]) -> None:
    """Check that no setting and no flag of verl stands among OpenRLHF's arguments.

    Raises:
        Fp16PatchError: If one does, with its place.
    """
    for word in arguments:
        if word.lstrip("+").startswith("precision@"):
            step = "remove it, and write --ds.param_dtype fp16: OpenRLHF's own argument sets the precision"
        elif word.lstrip("+").startswith(PREFIX):
            settings = [*settings, word.lstrip("+")]
            step = f"put it before the --: fp16-patch run {shlex.join(settings)} -- python -m {OPENRLHF[0]} ..."
        else:
            continue
        raise Fp16PatchError(
            f"{word} is not an argument of OpenRLHF",
            code="setting-misplaced",
            allowed="settings of the flag before the --, OpenRLHF's arguments after it",
            next_step=step,
        )


def check_flag(arguments: Sequence[str]) -> None:
    """Check that verl's flag has its ``+``, without which Hydra does not find it.

    Raises:
        Fp16PatchError: If the ``+`` is missing.
    """
    if word := next((word for word in arguments if word.startswith(FLAG[1:])), None):
        raise Fp16PatchError(
            f"{word}: the + is missing",
            code="setting-misplaced",
            allowed=f"{FLAG}=fp16",
            next_step=f"write +{word}",
        )


def shell_script(words: Sequence[str]) -> str | None:
    """Return the path of the shell script that the command runs, or None."""
    for at, word in enumerate(words):
        if word.endswith((".sh", ".bash")):
            return word
        if Path(word).name in SHELLS:
            return next((one for one in words[at + 1 :] if not one.startswith("-")), None)
    return None


def in_script(script: str, words: Sequence[str], settings: Sequence[str]) -> Fp16PatchError:
    """Return the error for a command inside a shell script: where it is, and how the flag gets there."""
    text = read_script(script)
    at, module = next(
        (number, module)
        for number, line in enumerate(text.splitlines(), 1)
        for module in (*VERL, *OPENRLHF)
        if module in line and not line.lstrip().startswith("#")
    )
    given = " ".join(["", *settings])
    if module in OPENRLHF:
        step = f"write `fp16-patch run{given} --` before python in line {at}"
    elif re.search(r"\$(@|\*|\{@)", text):
        step = f"the script passes its arguments on: {shlex.join(words)} {FLAG}=fp16{given}"
    else:
        step = f"add {FLAG}=fp16{given} to the command in line {at}"
    return Fp16PatchError(
        f"{script} is a script: only a shell can tell the trainer's command in its line {at}",
        code="command-in-script",
        allowed=ALLOWED,
        next_step=f"{step}. To see what the flag would change, write `fp16-patch doctor --` before the command in "
        f"line {at} of a copy ({PAGE})",
    )


def read_script(script: str) -> str:
    """Return the text of a shell script that names a supported trainer.

    Raises:
        Fp16PatchError: If the file cannot be read, or names none.
    """
    try:
        text = Path(script).read_text(errors="replace")
    except OSError as error:
        raise Fp16PatchError(
            f"{script} cannot be read: {error.strerror}",
            code="file-not-found",
            next_step="correct the path of the script",
        ) from error
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    if not any(module in code for module in (*VERL, *OPENRLHF)):
        raise Fp16PatchError(
            f"{script} starts no trainer that the flag supports",
            code="trainer-not-found",
            allowed=f"a script with {ALLOWED}",
            next_step=f"if it calls another script, give that one; otherwise the trainer's own command ({PAGE})",
        )
    return text


def _inside_another_program(found: UserCommand, settings: Sequence[str]) -> Fp16PatchError:
    given = " ".join(["", *settings])
    inner = shlex.join(["fp16-patch", "run", *settings, "--", *found.head, found.module])
    if found.only_sets_variables:
        variables = [word for word in found.wrapper if "=" in word]
        return Fp16PatchError(
            f"{shlex.join(variables)} comes after fp16-patch run",
            code="command-not-supported",
            allowed=ALLOWED,
            next_step=f"set variables before it: {shlex.join(variables)} {inner} ...",
        )
    outer = next(word for word in found.wrapper if "=" not in word)
    if found.module in VERL:
        step = f"start your command as it is, without fp16-patch run, and append {FLAG}=fp16{given}"
    else:
        step = f"put fp16-patch run inside: {shlex.join(found.wrapper)} {inner} ..."
    return Fp16PatchError(
        f"{outer} starts {found.module} in an environment of its own",
        code="command-not-supported",
        allowed=ALLOWED,
        next_step=f"{step}. The package must be in that environment ({PAGE})",
    )
