# SPDX-License-Identifier: Apache-2.0
"""Parse arguments as OpenRLHF does, without starting it.

The parser and the checks after it are statements of the main block of ``openrlhf/cli/train_ppo_ray.py``. They run here
except the last, which trains. The module itself is not imported: it needs packages that need a GPU.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import runpy
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.examined import Examined
from fp16_patch.frameworks.installation import package_folder
from fp16_patch.frameworks.openrlhf import config, entry, refusals
from fp16_patch.frameworks.unknown_option import unknown_option
from fp16_patch.precision import start_checks

_UNKNOWN = "unrecognized arguments: "


def examine_command(module: str, words: Sequence[str], overrides: Sequence[str]) -> Examined:
    """Return what the flag would do to ``python -m MODULE WORDS``; ``overrides`` are settings of the flag.

    Raises:
        Fp16PatchError: If OpenRLHF refuses the arguments, or a setting of the flag is not allowed.
    """
    given = config.settings(overrides)
    args = parsed(words)
    precision = config.precision(args, given)
    unwritable = start_checks.report_path_problems(given.get("report_path"))
    problems = [*unwritable, *entry.installation_problems(module), *refusals.unsupported(args, precision)]
    warned = entry.warnings(args, precision)
    if precision.train_dtype != "fp16":
        warned.append(
            f"this run trains in {precision.train_dtype}: for FP16 set --ds.param_dtype fp16, or "
            "fp16_patch.train_dtype=fp16 with fp16_patch.overwrite=true"
        )
    return Examined(precision.name, config.rewrite(args, precision), problems, warned)


def parser() -> argparse.ArgumentParser:
    """Return the parser that the module builds when it runs as the main program."""
    statements = _main_block()
    last = next(i for i, node in enumerate(statements) if "parse_args" in ast.unparse(node))
    found: argparse.ArgumentParser = _run(statements[:last])["parser"]
    return found


def parsed(words: Sequence[str]) -> Any:
    """Return the arguments that OpenRLHF's ``train`` would get. Raises :class:`Fp16PatchError` with its message."""
    said = io.StringIO()
    try:
        with _as_main_program(words), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return _run(_main_block())["args"]
    except (SystemExit, Exception) as error:
        message = said.getvalue().strip().rpartition(": error: ")[2] if isinstance(error, SystemExit) else str(error)
        if _UNKNOWN in message:
            known = [option.lstrip("-") for option in parser()._option_string_actions]
            raise unknown_option(message.partition(_UNKNOWN)[2].split()[0], "OpenRLHF", known) from error
        what = f"OpenRLHF refuses its arguments: {message}"
        raise Fp16PatchError(what, code="configuration-refused", next_step="correct the argument") from error


def _main_block() -> list[ast.stmt]:
    """Return its statements without the last and without the imports of its own modules."""
    file = package_folder("openrlhf", "OpenRLHF") / "cli" / "train_ppo_ray.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.If))
    return [node for node in main.body if not isinstance(node, ast.ImportFrom) and ast.unparse(node) != "train(args)"]


def _run(statements: list[ast.stmt]) -> dict[str, Any]:
    # By its path: importing the package would import the models.
    loaded = runpy.run_path(str(package_folder("openrlhf", "OpenRLHF") / "utils" / "config.py"))
    names = {"argparse": argparse, "datetime": datetime, "hierarchize": loaded["hierarchize"]}
    exec(compile(ast.Module(statements, []), "train_ppo_ray", "exec"), names)
    return names


@contextlib.contextmanager
def _as_main_program(words: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["train_ppo_ray.py", *words]
    try:
        yield
    finally:
        sys.argv = before
