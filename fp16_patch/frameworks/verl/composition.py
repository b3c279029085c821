# SPDX-License-Identifier: Apache-2.0
"""Compose the configuration that verl would start with, and check it as verl does; start nothing."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.examined import Examined
from fp16_patch.frameworks.installation import module_file, package_folder
from fp16_patch.frameworks.unknown_option import unknown_option
from fp16_patch.frameworks.verl.composition_errors import check_config_dir, composition_error, not_verls

MODULE = "verl.trainer.main_ppo"
_OWN_MAIN = "whether the proof reaches the trainer of this main is checked when it starts"
_UNKNOWN = re.compile(r"Could not override '(.+)'")


def examine_composed(module: str, words: Sequence[str]) -> Examined:
    """Return what the flag would do to ``python -m MODULE WORDS``. ``module`` may be the path of a script.

    Raises:
        Fp16PatchError: If Hydra cannot compose the configuration, or a setting of the flag is not allowed.
    """
    from omegaconf.errors import OmegaConfBaseException

    from fp16_patch.frameworks.verl.refusals import mains

    module_file(module)
    if problems := mains.problems(module):
        return Examined("", problems=problems)
    config = compose(words, module)
    from fp16_patch.frameworks.verl import entry
    from fp16_patch.frameworks.verl.config.changes import rewrite

    if module == MODULE and "actor_rollout_ref" not in config:
        given = _parsed(words)
        return Examined("", problems=[not_verls(given.config_path, given.config_name)])
    if problems := [*_callback_problems(config), *entry.application_problems(config)]:
        return Examined("", problems=problems)
    try:
        precision, changes, problems, _ = entry.compare(config)
        warned = [*entry.warnings(config, precision), *([] if module in mains.SUPPORTED else [_OWN_MAIN])]
    except OmegaConfBaseException as error:  # such as ${oc.env:NAME} of a variable that is not set
        raise _refused("OmegaConf", error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a part of verl's configuration is missing
        what = f"the flag could not be applied: {_message(error)}"
        raise Fp16PatchError(what, code="flag-not-applied", next_step="compare your file with verl's own") from error
    listed = [asdict(change) for change in changes]
    if not problems:
        rewrite(config, changes)
        problems, unread = verl_problems(config)
        warned += unread
    return Examined(precision.name, listed, [*entry.installation_problems(config), *problems], warned)


def _callback_problems(config: Any) -> list[Fp16PatchError]:
    """Return an error if the flag's callback would not run; verl's task runner would then stop the run."""
    if "fp16_patch" in (config.hydra.callbacks or {}):
        return []
    what, step = (
        "the command takes the flag's callback out of hydra.callbacks",
        "remove the override of hydra.callbacks",
    )
    return [Fp16PatchError(what, code="flag-not-applied", next_step=step)]


def compose(words: Sequence[str], module: str = MODULE) -> Any:
    """Return what Hydra composes for ``python -m MODULE WORDS``; its callbacks, the flag's included, do not run.

    Raises:
        Fp16PatchError: With Hydra's words, or if the module is not an application of Hydra.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    package_folder("verl", "verl")
    file = module_file(module)
    given = _parsed(words)
    declared = _declared(module, file)
    path = given.config_path if given.config_path is not None else declared.get("config_path")
    name = given.config_name if given.config_name is not None else declared.get("config_name")
    check_config_dir(given.config_dir)
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        return _composed(file, path, name, given)
    # ValueError: a word that is no override, or a file that is not text.
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        if found := _UNKNOWN.match(str(error)):
            word = next((word for word in given.overrides if word.startswith(f"{found[1]}=")), found[1])
            given.overrides = []
            known = _keys(_composed(file, path, name, given))
            raise unknown_option(word, "verl", known, f"correct it; +{word} adds a new key") from error
        raise composition_error(error, file, path, name, given) from error
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = before


def verl_problems(config: Any) -> tuple[list[Fp16PatchError], list[str]]:
    """Return why verl's ``validate_config`` refuses the rewritten configuration, and what it could not check here.

    verl's task runner calls it before it builds anything. For a critic it reads the model's files.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning if there is no critic
            validate_config(config, need_reference_policy(config), need_critic(config))
    except Exception as error:  # verl's dataclasses and asserts raise anything; Hydra wraps it
        if isinstance(error.__cause__ or error, OSError):
            return [], [f"verl's own checks need the files of a model, which are not here: {_message(error)}"]
        return [_refused("verl", error)], []
    return [], []


def _parsed(words: Sequence[str]) -> Any:
    """Return Hydra's reading of the command line: its options, and ``overrides``."""
    from hydra._internal.utils import get_args_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = get_args_parser().parse_args(list(words))
    except SystemExit as error:
        message = said.getvalue().strip().rpartition(": error: ")[2]
        what, advice = f"Hydra refuses the arguments: {message}", "correct the argument"
        raise Fp16PatchError(what, code="configuration-refused", next_step=advice) from error
    if given.multirun:
        from fp16_patch.frameworks.verl.entry import multirun_error

        raise multirun_error()
    return given


def _declared(module: str, file: Path) -> dict[str, Any]:
    """Return the arguments of the module's ``@hydra.main``. The module is not imported."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("hydra.main", "main"):
                names = ("config_path", "config_name", "version_base")
                given = dict(zip(names, call.args, strict=False))
                given |= {one.arg: one.value for one in call.keywords if one.arg}
                return {name: ast.literal_eval(value) for name, value in given.items()}
    raise Fp16PatchError(
        f"{module} starts no trainer that the flag supports: it has no @hydra.main",
        code="trainer-not-found",
        allowed=f"python -m {MODULE} ..., or a main of your own with verl's configuration",
        next_step="give the trainer's own command",
    )


def _composed(file: Path, path: str | None, name: str | None, given: Any) -> Any:
    """Compose as ``hydra._internal.utils._run_hydra`` does."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_automatic_config_search_path, validate_config_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    version.setbase(None)
    GlobalHydra.instance().clear()
    validate_config_path(path)
    search_path = create_automatic_config_search_path(str(file), None, path)
    if given.config_dir is not None:
        folder = os.path.abspath(given.config_dir)
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    hydra = Hydra.create_main_hydra2(task_name=file.stem, config_search_path=search_path)
    return hydra.compose_config(config_name=name, overrides=given.overrides, run_mode=RunMode.RUN)


def _keys(config: Mapping[Any, Any]) -> list[str]:
    from omegaconf import OmegaConf

    def walk(node: Mapping[Any, Any], parent: str) -> Iterator[str]:
        for name, value in node.items():
            yield f"{parent}{name}"
            if isinstance(value, Mapping):
                yield from walk(value, f"{parent}{name}.")

    plain: Any = OmegaConf.to_container(config)
    return list(walk(plain, ""))


def _refused(who: str, error: Exception) -> Fp16PatchError:
    what = f"{who} refuses the configuration: {_message(error)}"
    return Fp16PatchError(what, code="configuration-refused", next_step="correct the options")


def _message(error: Exception) -> str:
    cause = error.__cause__ or error  # Hydra's InstantiationException names only the class
    message = " ".join(str(cause).split()) or type(cause).__name__
    plain = isinstance(cause, AssertionError | ValueError | TypeError)
    return message if plain else f"{type(cause).__name__}: {message}"
