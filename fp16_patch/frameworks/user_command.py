# SPDX-License-Identifier: Apache-2.0
"""Find the trainer's command in what people type: ``python -m ...``, also inside ``uv run`` or ``ray job submit``.

Nothing is executed. What only a shell can know (variables, loops, functions) is not found; ``advice.py`` says what to
do then.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.shell_text import ShellWord, simple_commands

VERL = ("verl.trainer.main_ppo",)
OPENRLHF = ("openrlhf.cli.train_ppo_ray",)
SHELLS = ("sh", "bash", "dash", "zsh")
_PYTHON = re.compile(r"python[\d.]*")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_WITH_A_VALUE = ("-X", "-W", "--check-hash-based-pycs")


@dataclass(frozen=True)
class UserCommand:
    """A trainer's command, taken apart."""

    head: tuple[str, ...]
    """The interpreter with its options, up to ``-m``."""
    module: str
    """The module, or the path of a script."""
    arguments: tuple[str, ...]
    wrapper: tuple[str, ...] = ()
    """The words before it, such as ``ray job submit --``."""
    script: tuple[str, ...] = ()
    """The words that run the shell script it is in."""
    settings: tuple[str, ...] = ()
    """The settings of an inner ``fp16-patch run``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables that the words before it set."""
    ignored: tuple[str, ...] = ()
    """The arguments of the script that it does not pass on."""
    further: int = 0
    """The number of supported trainers' commands that follow it."""

    @property
    def words(self) -> list[str]:
        """The words from the interpreter on."""
        return [*self.head, self.module, *self.arguments]

    @property
    def is_script(self) -> bool:
        """Return whether ``module`` is a file."""
        return self.head[-1] not in ("-m", "--module")

    @property
    def only_sets_variables(self) -> bool:
        """Return whether the words before it, if any, only set variables: ``A=1``, ``env A=1``."""
        return all(word == "env" or _ASSIGNMENT.match(word) for word in self.wrapper)

    @property
    def submitted(self) -> bool:
        """Return whether ``ray job submit`` starts it."""
        return any(self.wrapper[i : i + 3] == ("ray", "job", "submit") for i in range(len(self.wrapper)))

    def option(self, name: str) -> str | None:
        """Return the value of an option of the words before it."""
        for at, word in enumerate(self.wrapper):
            if word == name:
                return next(iter(self.wrapper[at + 1 :]), "")
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return None


def find(words: Sequence[str]) -> UserCommand | None:
    """Return the first command that starts a Python module or script, or None."""
    words = list(words)
    for at, word in enumerate(words[:-2]):
        if Path(word).name in SHELLS and re.fullmatch(r"-\w*c", words[at + 1]):
            return find_in_text(words[at + 2], arguments=words[at + 4 :])
    return _python(words, modules=True) or _uv(words) or _python(words, modules=False)


def find_in_text(text: str, *, strict: bool = False, arguments: Sequence[str] = ()) -> UserCommand | None:
    """Return the first command of a shell command line that starts a supported trainer, or else any Python, or None.

    Environment variables are put in, as a shell would, and ``arguments`` in place of ``"$@"``. With ``strict``, for
    scripts, a first command with anything else that only a shell can replace counts as none.

    Raises:
        Fp16PatchError: If the text cannot be read as a command line, or only a shell can replace a part of the command.
    """
    environment: dict[str, str] = {}
    chosen: tuple[list[ShellWord], UserCommand] | None = None
    supported: list[UserCommand] = []
    commands = simple_commands(text)
    moved = bool(arguments) and any(
        [word.text for word in words[:2]] == ["set", "--"] or words[0].text == "shift" for words in commands
    )
    depth = 0  # in the braces of a function, "$@" is the function's
    for raw in commands:
        words = raw
        depth += sum({"{": 1, "}": -1}.get(word.text, 0) for word in raw)
        if not moved and depth <= 0:
            words = [one for word in raw for one in word.with_arguments(arguments)]
        if not strict:
            words = [word.with_variables({**os.environ, **environment}) for word in words]
        plain = [word.text for word in words]
        bare = plain[1:] if plain[:1] == ["export"] else plain
        if bare and all(_ASSIGNMENT.match(word) for word in bare):
            environment |= _assignments(bare)
        elif found := find(plain):
            ignored = () if any(word.passes_arguments_on for word in raw) else tuple(arguments)
            found = replace(found, environment={**environment, **found.environment}, ignored=ignored)
            if found.module in (*VERL, *OPENRLHF):
                chosen = chosen if supported else (words, found)
                supported.append(found)
            elif not strict:
                chosen = chosen or (words, found)
    if chosen is None:
        return None
    words, command = chosen
    unknown = next((word.text for word in words if word.only_a_shell_can_tell), None)
    if strict and unknown is not None:
        return None
    if unknown is not None:
        raise Fp16PatchError(
            f"only a shell can tell what {unknown!r} stands for",
            code="command-unreadable",
            allowed="words, quotes, and variables that are set here; no ~, no {a,b}, no pattern that files match",
            next_step="put `fp16-patch doctor --` in front of the command itself: your shell then fills it in",
        )
    return replace(command, further=len([one for one in supported if one is not command]))


def _python(words: list[str], *, modules: bool) -> UserCommand | None:
    for at, word in enumerate(words):
        if not _PYTHON.fullmatch(Path(word).name):
            continue
        i = at + 1
        while i < len(words) and words[i].startswith("-") and words[i] not in ("-m", "-c"):
            i += 2 if words[i] in _WITH_A_VALUE else 1
        if i < len(words) and words[i] == "-m" and i + 1 < len(words) and modules:
            return _taken_apart(words, at, i + 1)
        if i < len(words) and not words[i].startswith("-") and not modules:
            return _taken_apart(words, at, i)
    return None


def _uv(words: list[str]) -> UserCommand | None:
    """Return the command of ``uv run -m MODULE``."""
    at = next((i for i in range(len(words) - 1) if Path(words[i]).name == "uv" and words[i + 1] == "run"), None)
    option = next((i for i, word in enumerate(words) if word in ("-m", "--module")), None)
    if at is None or option is None or option < at or option + 1 >= len(words):
        return None
    return _taken_apart(words, option, option + 1)


def _taken_apart(words: list[str], start: int, module: int) -> UserCommand:
    wrapper = tuple(words[:start])
    settings: tuple[str, ...] = ()
    inner = next((i for i in range(start - 1) if Path(words[i]).name == "fp16-patch" and words[i + 1] == "run"), None)
    if inner is not None:
        settings = tuple(word for word in words[inner + 2 : start] if word != "--")
        wrapper = tuple(words[:inner])
    head, arguments = tuple(words[start:module]), tuple(words[module + 1 :])
    found = UserCommand(head, words[module], arguments, wrapper=wrapper, settings=settings)
    # ``A=1 python``, ``env A=1 python``.
    set_here = _assignments([word for word in wrapper if _ASSIGNMENT.match(word)])
    return replace(found, environment={**_of_the_job(found), **set_here})


def runtime_environment(command: UserCommand) -> dict[str, Any]:
    """Return the runtime environment of ``--runtime-env-json`` or ``--runtime-env``; empty if there is none.

    Mistakes in the JSON are found when the cluster is checked.

    Raises:
        Fp16PatchError: If the file of ``--runtime-env`` cannot be read, or is not a mapping.
    """
    file, text = command.option("--runtime-env"), command.option("--runtime-env-json") or "{}"
    try:
        given = yaml.safe_load(Path(file).read_text()) if file else json.loads(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        if not file:
            return {}
        raise _unreadable(file, str(error).splitlines()[0], isinstance(error, OSError)) from error
    except ValueError:
        return {}
    if file and given is not None and not isinstance(given, dict):
        raise _unreadable(file, f"it holds a {type(given).__name__}", False)
    return given if isinstance(given, dict) else {}


def _unreadable(file: str, why: str, missing: bool) -> Fp16PatchError:
    return Fp16PatchError(
        f"--runtime-env {file} cannot be read: {why}",
        code="file-not-found" if missing else "runtime-env-not-yaml",
        allowed="a YAML file, such as one with env_vars: {NAME: value}",
        next_step="correct its path, or what is in it",
    )


def _of_the_job(command: UserCommand) -> dict[str, str]:
    variables = runtime_environment(command).get("env_vars")
    return {str(name): str(value) for name, value in variables.items()} if isinstance(variables, dict) else {}


def _assignments(words: Sequence[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}
