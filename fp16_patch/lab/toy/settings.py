# SPDX-License-Identifier: Apache-2.0
"""Configure toy tasks."""

from __future__ import annotations

from dataclasses import dataclass

from fp16_patch.lab.data.selection import KEEP, SAMPLES


@dataclass(frozen=True)
class Settings:
    """Configure a toy task. The defaults are the quickstart's; tests shrink them."""

    digits: int = 5
    hidden: int = 64
    layers: int = 8
    experts: int = 0
    """Number of experts per layer; 0 is a dense policy."""
    batch: int = 32
    max_steps: int = 800
    target: float = 0.5
    """Sampled accuracy at which supervised training stops."""
    train: int = 320
    val: int = 64
    samples: int = SAMPLES
    keep_from: float = KEEP[0]
    keep_to: float = KEEP[1]
    """Lowest and highest solve rate of the problems kept, both included."""


TOY_TASKS = {
    "toy": Settings(),
    "toy-moe": Settings(layers=4, experts=4),
    "toy-long": Settings(digits=10, max_steps=1600),
}
"""Settings by the name that recipes use."""
