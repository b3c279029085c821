# SPDX-License-Identifier: Apache-2.0
"""Compose the configuration that verl would start with; start nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.arms.command import Command


def compose(command: Command) -> Any:
    """Return Hydra's composition of the command, rewritten by the flag and accepted by verl's own checks.

    Raises :class:`Fp16PatchError` with Hydra's words, the flag's refusals or verl's.
    """
    if importlib.util.find_spec("verl") is None:
        raise Fp16PatchError(
            "verl is not installed", code="not-installed", next_step="pip install verl, or use another framework"
        )
    config = _composed([word for word in command.arguments[3:] if not word.startswith("hydra.")])
    from fp16_patch.frameworks.verl import entry
    from fp16_patch.frameworks.verl.config import rules

    _, changes, _ = entry.examine(config)
    rules.rewrite(config, changes)
    _accepted(config)
    return config


def _composed(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose("ppo_trainer", overrides=overrides, return_hydra_config=True)
    except (HydraException, ValueError) as error:  # ValueError: what is no override at all
        raise Fp16PatchError(f"Hydra refuses the overrides: {error}", code="configuration-refused") from error


def _accepted(config: Any) -> None:
    """Run verl's ``validate_config``, which its task runner calls before it builds anything."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no critic
            validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, TypeError) as error:
        raise Fp16PatchError(f"verl refuses the configuration: {error}", code="configuration-refused") from error
