# SPDX-License-Identifier: Apache-2.0
"""The user's arguments of ``python -m verl.trainer.main_ppo``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf


def overrides(config: DictConfig) -> list[str]:
    """Return the command line's overrides, word for word.

    Hydra keeps them in a node of the configuration. Reading an override that holds an interpolation (``a.b=${c.d}``)
    would resolve it.
    """
    hydra = config.get("hydra")
    task = OmegaConf.select(hydra, "overrides.task") if hydra is not None else None
    return [str(word) for word in OmegaConf.to_container(task, resolve=False)] if task is not None else []


def explicit_keys(config: DictConfig) -> frozenset[str]:
    """Return the keys set on the command line; ``a={b:1}`` sets ``a.b``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides(config))
    return frozenset(key for override in parsed for key in _leaves(override.key_or_group, override.value()))


def _leaves(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield key
        return
    for name, child in value.items():
        yield from _leaves(f"{key}.{name}", child)
