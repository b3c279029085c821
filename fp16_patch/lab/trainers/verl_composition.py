# SPDX-License-Identifier: Apache-2.0
"""Compose the configuration that verl would start with; start nothing."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import Command
from fp16_patch.lab.trainers.base import package_folder, unknown_option

_UNKNOWN = re.compile(r"Could not override '(.+)'")


def compose(command: Command) -> Any:
    """Return Hydra's composition of the command, rewritten by the flag and accepted by verl's own checks.

    Raises :class:`Fp16PatchError` with Hydra's words, the flag's refusals or verl's.
    """
    package_folder("verl", "verl")
    config = _composed([word for word in command.arguments[3:] if not word.startswith("hydra.")])
    from fp16_patch.frameworks.verl import entry
    from fp16_patch.frameworks.verl.config.changes import rewrite

    _, changes, _ = entry.examine(config)
    rewrite(config, changes)
    _accepted(config)
    return config


def _composed(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    with initialize_config_module("verl.trainer.config", version_base=None):
        try:
            return compose("ppo_trainer", overrides=overrides, return_hydra_config=True)
        except (HydraException, ValueError) as error:  # ValueError: a word that is not an override
            message, _, advice = str(error).partition("\n")
            if found := _UNKNOWN.match(message):
                word = next((word for word in overrides if word.startswith(f"{found[1]}=")), found[1])
                known: Any = OmegaConf.to_container(compose("ppo_trainer"))
                raise unknown_option(word, "verl", _keys(known), f"correct it; +{word} adds a new key") from error
            raise Fp16PatchError(
                f"Hydra refuses the overrides: {message}",
                code="configuration-refused",
                next_step=" ".join(advice.partition("Config search path")[0].split()) or "correct the override",
            ) from error


def _keys(config: Mapping[Any, Any], parent: str = "") -> Iterator[str]:
    """Yield the dotted key of every value in ``config``."""
    for name, value in config.items():
        yield f"{parent}{name}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{parent}{name}.")


def _accepted(config: Any) -> None:
    """Run verl's ``validate_config``, which its task runner calls before it builds anything."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning if there is no critic
            validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, TypeError) as error:
        what = f"verl refuses the configuration: {error}"
        raise Fp16PatchError(what, code="configuration-refused", next_step="correct the options") from error
