# SPDX-License-Identifier: Apache-2.0
"""Say what the flag would do to the user's command: ``fp16-patch doctor -- COMMAND``. Starts nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fp16_patch import text_table
from fp16_patch.cli.interpreter import find_interpreter, is_this_environment
from fp16_patch.engines.ray.cluster import cluster_problems, runtime_env_problems
from fp16_patch.errors import Fp16PatchError, as_mapping
from fp16_patch.frameworks import advice
from fp16_patch.frameworks.launcher import verl_arguments
from fp16_patch.frameworks.user_command import OPENRLHF, UserCommand, find, find_in_text, runtime_environment
from fp16_patch.precision.setting_names import check_settings


def find_command(words: Sequence[str], text: str | None) -> UserCommand:
    """Return the trainer's command in ``words``, or in the command line ``text``.

    Raises:
        Fp16PatchError: If there is none, or only a shell can tell it.
    """
    if text is not None:
        found = find_in_text(text)
        words = text.split()
    else:
        found = find(words)
    if found is None and (script := advice.shell_script(words)):
        arguments = words[list(words).index(script) + 1 :]
        found = find_in_text(advice.read_script(script), strict=True, arguments=arguments)
        if found is None:
            raise advice.in_script(script, words, ())
        found = replace(found, script=tuple(words))
    if found is None:
        raise advice.command_not_supported(words, ())
    return found


def run_in_its_environment(command: UserCommand, arguments: Sequence[str]) -> None:
    """Replace this process by ``fp16-patch ARGUMENTS -- COMMAND`` in the command's environment, if that is another one.

    A command inside a script, ``uv run``, ``ray job submit`` and the like is examined in this environment.

    Raises:
        Fp16PatchError: If its interpreter is not found, or lacks this package.
    """
    if command.script or not command.only_sets_variables:
        return
    program = find_interpreter(command.head[0])
    if not is_this_environment(program):
        sys.stdout.flush()
        environment = {**os.environ, **command.environment}
        os.execve(program, [program, "-m", "fp16_patch.cli", *arguments, "--", *command.words], environment)


def examine(command: UserCommand, settings: Sequence[str]) -> dict[str, Any]:
    """Return the findings, ready for JSON.

    Raises:
        Fp16PatchError: If the command's configuration cannot be composed.
    """
    settings = [*command.settings, *settings]
    check_settings(settings)
    unreachable: list[Fp16PatchError] = []
    in_job = _job_problems(command) if command.submitted else []
    if unreadable := next((error for error in in_job if error.code == "runtime-env-not-json"), None):
        raise unreadable
    openrlhf = command.module in OPENRLHF and not command.is_script
    if command.module.startswith("openrlhf.") and not openrlhf:
        raise advice.other_main(command.module)
    option = advice.trains_nothing(command.arguments)
    if option and openrlhf:
        raise _trains_nothing(option)
    idle = [_trains_nothing(option)] if option else []
    with _environment(command):
        if openrlhf:
            from fp16_patch.frameworks.openrlhf.composition import examine_command

            advice.check_openrlhf_arguments(settings, command.arguments)
            examined = examine_command(command.module, command.arguments, settings)
            in_job += _hook_problems(command) if command.submitted else []
            unreachable = cluster_problems()  # OpenRLHF's ray.init has no address; verl's is in its configuration
            flagged = ["fp16-patch", "run", *settings, "--", *command.words]
        else:
            from fp16_patch.frameworks.verl.composition import examine_composed

            with_flag = verl_arguments(settings, command.arguments)
            examined = examine_composed(command.module, with_flag)
            flagged = [*command.head, command.module, *with_flag]
    problems = [*in_job, *unreachable, *_script_problems(command), *idle, *examined.problems]
    return {
        "command": command.words,
        "inside": [*command.script, *command.wrapper],
        "framework": "openrlhf" if openrlhf else "verl",
        "executable": sys.executable,
        "precision": examined.precision,
        "changes": [dict(change) for change in examined.changes],
        "refused": [as_mapping(problem) for problem in problems],
        "warnings": [*_further(command), *examined.warnings],
        "with_the_flag": [*command.wrapper, *flagged],
        "ready": not problems,
    }


def as_text(findings: Mapping[str, Any]) -> str:
    """Return the findings as text."""
    inside = shlex.join(findings["inside"])
    paragraphs = [f"{findings['framework']}: {shlex.join(findings['command'])}"]
    if inside:
        paragraphs.append(f"Inside: {inside}\nComposed with the packages of {findings['executable']}")
    if changes := findings["changes"]:
        rows = [[one["key"], str(one["before"]), str(one["after"]), _MARKS[one["overwritten"]]] for one in changes]
        paragraphs.append(f"What the flag would change here, precision {findings['precision']} (nothing was started):")
        paragraphs.append(text_table.plain(("key", "before", "after", ""), rows))
    paragraphs += [f"WARNING: {text}" for text in findings["warnings"]]
    for one in findings["refused"]:
        lines = [f"NOT READY: {one['what']}"]
        lines += [f"  {name.replace('_', ' ')}: {one[name]}" for name in ("allowed", "next_step") if one[name]]
        paragraphs.append("\n".join(lines))
    if findings["ready"]:
        paragraphs.append(f"Ready: {shlex.join(findings['with_the_flag'])}")
    return "\n\n".join(paragraphs)


_MARKS = {True: "overwritten", False: ""}


def _hook_problems(command: UserCommand) -> list[Fp16PatchError]:
    from fp16_patch.engines.ray.runtime_env import check_setup_hook
    from fp16_patch.frameworks.openrlhf.entry import SETUP

    try:
        check_setup_hook(runtime_environment(command), SETUP)
    except Fp16PatchError as error:
        return [error]
    return []


def _script_problems(command: UserCommand) -> list[Fp16PatchError]:
    if not command.ignored:
        return []
    return [
        Fp16PatchError(
            f"the script does not pass its arguments on to the trainer: {shlex.join(command.ignored)}",
            code="script-arguments-ignored",
            allowed='arguments, if the trainer\'s command in the script has "$@"',
            next_step='write "$@" at the end of the trainer\'s command in the script, or write the arguments there',
        )
    ]


def _trains_nothing(option: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"with {option} the command prints something and trains nothing",
        code="command-trains-nothing",
        next_step=f"remove {option}; this report shows what the flag changes",
    )


def _further(command: UserCommand) -> list[str]:
    if not command.further:
        return []
    return [f"only the first trainer's command was examined; the same text has {command.further} more"]


def _job_problems(command: UserCommand) -> list[Fp16PatchError]:
    refused = runtime_env_problems(runtime_environment(command), command.option("--working-dir"))
    return refused + cluster_problems(command.option("--address"), command.option("--runtime-env-json"), submit=True)


@contextlib.contextmanager
def _environment(command: UserCommand) -> Iterator[None]:
    """Set what the command would find: its variables, and its folder of modules. Ask no hub for a model."""
    before, path = dict(os.environ), list(sys.path)
    in_job = {"RAY_ADDRESS": "local"} if command.submitted else {}  # the job's own cluster, checked before
    os.environ.update({"HF_HUB_OFFLINE": "1", **command.environment, **in_job})
    sys.path.insert(0, os.path.dirname(os.path.abspath(command.module)) if command.is_script else os.getcwd())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        sys.path[:] = path
