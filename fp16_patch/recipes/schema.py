# SPDX-License-Identifier: Apache-2.0
"""What a recipe says. Each class is one section of the YAML, each field one key of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PLATFORMS = ("cpu",)
WORLDS = ("toy",)
WORLD_PLACES = ("{world.model}", "{world.train}", "{world.val}", "{world.reward}")
LAUNCHER_KEYS = (
    "precision@_global_",
    "fp16_patch.report_path",
    "hydra.run.dir",
    "trainer.default_local_dir",
    "trainer.experiment_name",
    "trainer.logger",
)
"""verl keys the launcher sets itself, so that progress and reports find what they read."""


@dataclass(frozen=True)
class Reproduces:
    """``what`` of the paper, ``where`` in it, and the ``source`` of the numbers: script, figure or second hand."""

    what: str
    where: str
    source: str


@dataclass(frozen=True)
class Model:
    path: str
    about: str = ""


@dataclass(frozen=True)
class Data:
    """Parquet files, and a Python file with ``compute_score`` where verl has no verifier for the data."""

    train: str
    val: str
    reward: str | None = None
    about: str = ""


@dataclass(frozen=True)
class Algorithm:
    """Its name in the paper. What it does is written out in ``verl.overrides``."""

    name: str
    about: str = ""


@dataclass(frozen=True)
class Hardware:
    """``ranks`` per node are GPUs, or processes on the CPU platform. ``timeout_minutes`` holds for one arm."""

    ranks: int
    timeout_minutes: float
    nodes: int = 1
    about: str = ""


@dataclass(frozen=True)
class Verl:
    """``overrides`` maps dotted Hydra keys to values; a key may start with ``+`` or ``++`` as on the command line."""

    overrides: dict[str, object]


@dataclass(frozen=True)
class Arm:
    """One run of the comparison: the value of the precision flag, and overrides this arm alone gets."""

    precision: str
    overrides: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectation:
    """A bound on one number of ``report.json``, ``metric`` being its dotted path, and where the bound is from."""

    metric: str
    source: str
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        bounds = [f">= {self.at_least:g}"] if self.at_least is not None else []
        bounds += [f"<= {self.at_most:g}"] if self.at_most is not None else []
        return f"{self.metric} {' and '.join(bounds)}"


@dataclass(frozen=True)
class Recipe:
    name: str
    title: str
    reproduces: Reproduces
    model: Model
    data: Data
    algorithm: Algorithm
    hardware: Hardware
    arms: dict[str, Arm]
    verl: Verl
    expected: tuple[Expectation, ...] = ()
    platform: str | None = None
    world: str | None = None


def precisions() -> tuple[str, ...]:
    """The values the flag takes: one Hydra option file each."""
    options = Path(__file__).parents[1] / "frameworks" / "verl" / "conf" / "precision"
    return tuple(sorted(path.stem for path in options.glob("*.yaml")))
