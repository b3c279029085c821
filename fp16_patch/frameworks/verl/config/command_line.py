# SPDX-License-Identifier: Apache-2.0
"""What the user wrote behind ``python -m verl.trainer.main_ppo``."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def overrides(config: DictConfig) -> list[str]:
    """Return the command line's overrides, word for word.

    Hydra keeps them in a node of the configuration itself, where reading one that holds an interpolation
    (``a.b=${c.d}``) would give the text with the value in its place.
    """
    hydra = config.get("hydra")
    task = OmegaConf.select(hydra, "overrides.task") if hydra is not None else None
    return [str(word) for word in OmegaConf.to_container(task, resolve=False)] if task is not None else []
