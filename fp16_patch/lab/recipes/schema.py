# SPDX-License-Identifier: Apache-2.0
"""Define the keys of a recipe: each class is one section of the YAML, each field one key of it.

A recipe that reproduces the paper names an algorithm of ``shared/algorithms.yaml`` and gives ``hyperparameters`` in the
paper's words; a framework's section then holds only what differs. Without ``hyperparameters`` it is written out in the
frameworks' own keys, and the algorithm's name is a label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fp16_patch.lab.recipes.hyperparameters import Setting
from fp16_patch.lab.recipes.parse import NOT_A_KEY

SCALES = ("paper", "toy")
PRECISIONS = ("fp16", "bf16", "fp32")
PLATFORMS = ("cpu",)
STRATEGIES = ("fsdp2", "fsdp", "megatron")
REWARD_PLACE = "{math_reward}"
"""Placeholder for this package's reward function for mathematics, ``math_reward.py``."""
WORLD_PLACES = tuple(
    f"{{world.{name}}}" for name in ("model", "train", "val", "train_prompts", "val_prompts", "reward")
)


@dataclass(frozen=True)
class Reproduces:
    """The part of the paper: ``what``, ``where`` it is, and the ``source`` of the numbers."""

    what: str
    where: str
    source: str


@dataclass(frozen=True)
class Model:
    """The model: a folder or a hub id, and a description."""

    path: str
    about: str = ""


@dataclass(frozen=True)
class Data:
    """Data files in the framework's format, and a Python file with the reward function.

    Leave ``reward`` out if the framework has a reward for the data. verl needs ``val``; OpenRLHF accepts it only
    with ``reward``. ``problems`` is the number of training prompts, ``fetch`` the command that makes missing files.
    """

    train: str
    val: str | None = None
    reward: str | None = None
    problems: int | None = None
    fetch: str = ""
    about: str = ""


@dataclass(frozen=True)
class OtherData:
    """Files that one framework reads in place of those in ``data``."""

    train: str | None = None
    val: str | None = None
    reward: str | None = None


@dataclass(frozen=True)
class Algorithm:
    """The algorithm's name in the paper, and in ``shared/algorithms.yaml`` if the recipe has hyperparameters."""

    name: str
    about: str = ""


@dataclass(frozen=True)
class Hardware:
    """The hardware: ``ranks`` are GPUs per node (processes on the CPU platform), ``timeout_minutes`` is per arm."""

    ranks: int
    timeout_minutes: float
    nodes: int = 1
    about: str = ""


@dataclass(frozen=True)
class Verl:
    """The section of verl: ``overrides`` maps Hydra keys to values; a key may start with ``+`` or ``++``.

    ``strategy`` is the trainer's engine, for recipes with hyperparameters: fsdp2, fsdp or megatron.
    """

    overrides: dict[str, object] = field(default_factory=dict)
    strategy: str | None = None
    data: OtherData = field(default_factory=OtherData)


@dataclass(frozen=True)
class OpenRLHF:
    """The section of OpenRLHF: ``arguments`` maps options without ``--`` to values; true is an option without a value.

    They may hold settings of this package, such as ``fp16_patch.loss_scaling.init_scale: 1024``.
    """

    arguments: dict[str, object] = field(default_factory=dict)
    data: OtherData = field(default_factory=OtherData)


@dataclass(frozen=True)
class Arm:
    """One run of the comparison.

    ``precision`` is the trainer's; ``rollout`` is the rollout's if it differs. The rest holds for this arm only:
    ``algorithm``, ``hyperparameters``, ``overrides`` for verl, ``arguments`` for OpenRLHF. ``rollout_significand`` (CPU
    platform) is the number of explicit bits to which the rollout's linear layers are rounded.
    """

    precision: str
    rollout: str | None = None
    rollout_significand: int | None = None
    algorithm: str | None = None
    hyperparameters: dict[str, Setting] = field(default_factory=dict)
    overrides: dict[str, object] = field(default_factory=dict)
    arguments: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A number that the paper shows for one arm: ``what``, its ``value`` within ``tolerance``, the ``step``."""

    what: str
    value: float
    tolerance: float
    source: str
    step: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Toy:
    """The same algorithm at toy scale: replaces the recipe's sections, and single hyperparameters."""

    hyperparameters: dict[str, Setting]
    model: Model
    data: Data
    hardware: Hardware
    platform: str
    world: str
    verl: Verl | None = None
    openrlhf: OpenRLHF | None = None
    about: str = ""


@dataclass(frozen=True)
class Expectation:
    """A bound on one number of ``report.json``, and the source of the bound.

    ``metric`` is the dotted path of a number under ``headline``, ``to_reward`` or ``arms``.
    """

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
    """A recipe. ``frameworks`` are those it has a section for, in the order of the file; the first is the default.

    ``scale`` is set only in the copy that a run keeps; a recipe file has a ``toy`` section instead.
    """

    ALSO: ClassVar[tuple[str, ...]] = ("extends",)  # filled in before
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
    hyperparameters: dict[str, Setting] = field(default_factory=dict)
    published: dict[str, tuple[Published, ...]] = field(default_factory=dict)
    expected: tuple[Expectation, ...] = ()
    toy: Toy | None = None
    scale: str | None = None
    platform: str | None = None
    world: str | None = None
    frameworks: tuple[str, ...] = field(default=(), metadata=NOT_A_KEY)

    @property
    def scales(self) -> tuple[str, ...]:
        """The scales it runs at, the larger one first. A recipe with a toy section has both."""
        if self.toy is not None:
            return SCALES
        return ("toy",) if self.world else ("paper",)
