# SPDX-License-Identifier: Apache-2.0
"""What a recipe says. Each class is one section of the YAML, each field one key of it.

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
REWARD_PLACE = "{math_reward}"
"""The verifier of this package for mathematics; see ``math_reward``."""
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

    verl needs ``val``; on OpenRLHF, which takes it only with ``reward``, it may be left out. ``problems`` is the number
    of training prompts, and ``fetch`` what to run where the files are missing.
    """

    train: str
    val: str | None = None
    reward: str | None = None
    problems: int | None = None
    fetch: str = ""
    about: str = ""


@dataclass(frozen=True)
class OtherData:
    """What a framework reads in place of ``data``'s."""

    train: str | None = None
    val: str | None = None
    reward: str | None = None


@dataclass(frozen=True)
class Algorithm:
    """Its name in the paper, and in ``shared/algorithms.yaml`` where the recipe gives hyperparameters."""

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
    """``overrides`` maps dotted Hydra keys to values; a key may start with ``+`` or ``++`` as on the command line.

    ``strategy`` is the trainer's engine, for recipes with hyperparameters: fsdp2, fsdp or megatron.
    """

    overrides: dict[str, object] = field(default_factory=dict)
    strategy: str | None = None
    data: OtherData = field(default_factory=OtherData)


@dataclass(frozen=True)
class OpenRLHF:
    """``arguments`` maps options without the leading ``--`` to values; true is an option that takes none.

    Settings of ours are among them, as in ``fp16_patch.loss_scaling.init_scale: 1024``.
    """

    arguments: dict[str, object] = field(default_factory=dict)
    data: OtherData = field(default_factory=OtherData)


@dataclass(frozen=True)
class Arm:
    """One run of the comparison: the trainer's precision and, where it differs, the ``rollout``'s; what this arm alone
    gets: another ``algorithm``, ``hyperparameters``, verl ``overrides``, OpenRLHF ``arguments``.

    ``rollout_significand``, on the CPU platform: the explicit bits to which the rollout's linear layers are rounded.
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
    """A number the paper shows for one arm: ``what``, its ``value`` within ``tolerance``, at which ``step``."""

    what: str
    value: float
    tolerance: float
    source: str
    step: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Toy:
    """The same algorithm at another scale: these replace the recipe's own sections, hyperparameters one by one."""

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
    """A bound on one number of ``report.json``, and where the bound is from.

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
    """``frameworks`` are those it has a section for, in the order of the file: the first is the default.

    ``scale`` is written into the copy that a run keeps; a recipe file has its ``toy`` section instead.
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
