# SPDX-License-Identifier: Apache-2.0
"""What a recipe says. Each class is one section of the YAML, each field one key of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fp16_patch.recipes.strict import NOT_A_KEY

PLATFORMS = ("cpu",)
WORLDS = ("toy",)
WORLD_PLACES = tuple(
    f"{{world.{name}}}" for name in ("model", "train", "val", "train_prompts", "val_prompts", "reward")
)


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
    """Files in the framework's format, and a Python file with its reward function where it has none for the data.

    verl needs ``val``; on OpenRLHF, which takes it only with ``reward``, it may be left out.
    """

    train: str
    val: str | None = None
    reward: str | None = None
    about: str = ""


@dataclass(frozen=True)
class Algorithm:
    """Its name in the paper. What it does is written out in the framework's section."""

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
class OpenRLHF:
    """``arguments`` maps options without the leading ``--`` to values; true is an option that takes none.

    Settings of ours are among them, as in ``fp16_patch.loss_scaling.init_scale: 1024``.
    """

    arguments: dict[str, object]


@dataclass(frozen=True)
class Arm:
    """One run of the comparison: its precision, and what this arm alone gets: verl ``overrides``, OpenRLHF
    ``arguments``."""

    precision: str
    overrides: dict[str, object] = field(default_factory=dict)
    arguments: dict[str, object] = field(default_factory=dict)


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
    """``frameworks`` are those it has a section for, in the order of the file: the first is the default."""

    name: str
    title: str
    reproduces: Reproduces
    model: Model
    data: Data
    algorithm: Algorithm
    hardware: Hardware
    arms: dict[str, Arm]
    verl: Verl | None = None
    openrlhf: OpenRLHF | None = None
    expected: tuple[Expectation, ...] = ()
    platform: str | None = None
    world: str | None = None
    frameworks: tuple[str, ...] = field(default=(), metadata=NOT_A_KEY)
