# SPDX-License-Identifier: Apache-2.0
"""Parse arguments as OpenRLHF does, without starting it.

The parser and the checks after it are statements of the main block of ``openrlhf/cli/train_ppo_ray.py``. They run here
except the last, which trains. The module itself is not imported: it needs packages that need a GPU.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.trainers.base import unknown_option

_UNKNOWN = "unrecognized arguments: "


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
    except (SystemExit, AssertionError) as error:
        message = said.getvalue().strip().splitlines()[-1] if isinstance(error, SystemExit) else str(error)
        if _UNKNOWN in message:
            known = [option.lstrip("-") for option in parser()._option_string_actions]
            raise unknown_option(message.partition(_UNKNOWN)[2], "OpenRLHF", known) from error
        raise Fp16PatchError(
            f"OpenRLHF refuses its arguments: {message}",
            code="configuration-refused",
            next_step="correct the argument",
        ) from error


def _main_block() -> list[ast.stmt]:
    """Return its statements without the last and without the imports of its own modules."""
    tree = ast.parse((_package() / "cli" / "train_ppo_ray.py").read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.If))
    return [node for node in main.body if not isinstance(node, ast.ImportFrom) and ast.unparse(node) != "train(args)"]


def _run(statements: list[ast.stmt]) -> dict[str, Any]:
    names: dict[str, Any] = {"argparse": argparse, "datetime": datetime, "hierarchize": _hierarchize()}
    exec(compile(ast.Module(statements, []), "train_ppo_ray", "exec"), names)
    return names


def _hierarchize() -> Any:
    """Load its module without the package, which imports the models."""
    spec = importlib.util.spec_from_file_location("_openrlhf_config", _package() / "utils" / "config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.hierarchize


def _package() -> Path:
    installed = importlib.util.find_spec("openrlhf")
    if installed is None or installed.origin is None:
        raise Fp16PatchError(
            "OpenRLHF is not installed",
            code="not-installed",
            next_step="pip install openrlhf, or use another framework",
        )
    return Path(installed.origin).parent


@contextlib.contextmanager
def _as_main_program(words: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["train_ppo_ray.py", *words]
    try:
        yield
    finally:
        sys.argv = before
