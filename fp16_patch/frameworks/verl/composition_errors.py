# SPDX-License-Identifier: Apache-2.0
"""Say why Hydra cannot compose a configuration: the file or option that is wrong, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fp16_patch.errors import Fp16PatchError

_OWN_FILE = "defaults: [ppo_trainer, _self_] and hydra: {searchpath: [pkg://verl.trainer.config]}"


def composition_error(error: Exception, main: Path, path: str | None, name: str | None, given: Any) -> Fp16PatchError:
    """Return the error for what Hydra raised.

    Args:
        error: Hydra's, OmegaConf's or the YAML reader's exception.
        main: The file of the main, which a relative ``path`` starts from.
        path: The folder of the main configuration.
        name: The name of the main configuration.
        given: Hydra's reading of the command line.
    """
    from hydra.errors import MissingConfigException, OverrideParseException

    unspoken = not str(error) and error.__cause__ is not None  # Hydra's exception around OmegaConf's
    message, _, advice = str(error.__cause__ if unspoken else error).partition("\n")
    advice = " ".join(advice.partition("Config search path")[0].split())
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        return _refused(
            f"{mark.name}, line {mark.line + 1}: not valid YAML: {error.problem or error.context}",
            f"correct line {mark.line + 1} of the file; an error may also be in the lines before it",
        )
    if isinstance(error, MissingConfigException):
        return _missing(message, path, name, given)
    if isinstance(error, OverrideParseException):
        word = getattr(error, "override", None)
        what = f"Hydra refuses the overrides: {word}: {message}" if word else f"Hydra refuses the overrides: {message}"
        return _refused(what, "correct the override, and quote it for the shell; " + advice)
    if broken := _broken(main, path, name):
        return _refused(broken, f"correct the file; verl's own are a mapping, and yours needs {_OWN_FILE}")
    if isinstance(error, UnicodeDecodeError | yaml.YAMLError):
        return _refused(
            f"a file of the configuration cannot be read: {message}",
            "correct the file that a defaults list or an override of a config group names",
        )
    if unspoken:
        what = f"OmegaConf refuses the configuration of {_named(path, name)}: {message}"
        return _refused(what, "correct the file, or the one that its defaults list names; quote a text that has ${")
    what = f"Hydra refuses the overrides: {message or type(error).__name__}"
    return _refused(what, advice or "correct the override, or the file that sets it")


def not_verls(path: str | None, name: str | None) -> Fp16PatchError:
    """Return the error for a main configuration that lacks what verl's trainer reads."""
    return Fp16PatchError(
        f"{_named(path, name)} is not a configuration of verl's PPO trainer: it has no actor_rollout_ref",
        code="application-not-supported",
        allowed=f"verl's own ppo_trainer, or a file with {_OWN_FILE}",
        next_step="correct --config-name, or add these lines to the file",
    )


def check_config_dir(folder: str | None) -> None:
    """Check ``--config-dir``.

    Raises:
        Fp16PatchError: If it is not a folder.
    """
    if folder is not None and not Path(folder).is_dir():
        place = Path(folder).absolute()
        why = f"{place} is not a folder" if place.exists() else f"there is no folder {place}"
        raise _refused(f"--config-dir {folder}: {why}", "correct the path of --config-dir")


def _missing(message: str, path: str | None, name: str | None, given: Any) -> Fp16PatchError:
    if message.startswith("Primary config directory"):
        return _refused(
            f"--config-path {path}: there is no such folder",
            "correct --config-path: give an absolute path; Hydra takes a relative one from the main's own folder",
        )
    if message.startswith("Cannot find primary config"):
        option = "--config-name" if given.config_name is not None else "--config-path"
        return _refused(
            f"{_named(path, name)}: {message.partition('.')[0]}",
            f"correct {option}; a file NAME.yaml in a folder of your own needs --config-path FOLDER --config-name NAME",
        )
    return _refused(f"Hydra refuses the configuration: {message}", "correct the name, or the file that has it")


def _broken(main: Path, path: str | None, name: str | None) -> str | None:
    """Return what is wrong with the file of the main configuration, or None."""
    if name is None or (path or "").startswith("pkg://"):
        return None
    file = main.parent / (path or "").removeprefix("file://") / name
    file = file if file.suffix in (".yaml", ".yml") else file.with_name(f"{file.name}.yaml")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return f"{file} is not a text file in UTF-8"
    except (OSError, yaml.YAMLError):
        return None
    return None if found is None or isinstance(found, dict) else f"{file} holds a {type(found).__name__}, not a mapping"


def _named(path: str | None, name: str | None) -> str:
    return f"--config-name {name} (folder {path})" if name else "this command's configuration"


def _refused(what: str, next_step: str) -> Fp16PatchError:
    return Fp16PatchError(what, code="configuration-refused", next_step=next_step)
