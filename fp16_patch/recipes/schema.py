# SPDX-License-Identifier: Apache-2.0
"""What a recipe says. Each class is one section of the YAML, each field one key of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fp16_patch.errors import Fp16PatchError, several

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


def validate(recipe: Recipe, *, source: str) -> None:
    """Raise one :class:`Fp16PatchError` with everything that types alone do not catch."""
    problems = [*_choices(recipe, source), *_overrides(recipe, source), *_ranges(recipe, source)]
    if problems:
        raise several(problems)


def _choices(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    chosen: list[tuple[str, str | None, tuple[str, ...]]]
    chosen = [("platform", recipe.platform, PLATFORMS), ("world", recipe.world, WORLDS)]
    chosen += [(f"arms.{name}.precision", arm.precision, precisions()) for name, arm in recipe.arms.items()]
    problems = [
        Fp16PatchError(f"{source}: {key}={value!r} is unknown", allowed=", ".join(allowed))
        for key, value, allowed in chosen
        if value is not None and value not in allowed
    ]
    paths = {
        "model.path": recipe.model.path,
        "data.train": recipe.data.train,
        "data.val": recipe.data.val,
        "data.reward": recipe.data.reward or "",
    }
    placeholders = WORLD_PLACES if recipe.world else ()
    problems += [
        Fp16PatchError(
            f"{source}: {key}={path!r} holds an unknown placeholder",
            allowed=", ".join(placeholders) or "placeholders where a world is set",
        )
        for key, path in paths.items()
        if not set(re.findall(r"\{[^}]*\}?|\}", path)) <= set(placeholders)
    ]
    return problems


def _overrides(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    groups = {"verl.overrides": recipe.verl.overrides}
    groups |= {f"arms.{name}.overrides": arm.overrides for name, arm in recipe.arms.items()}
    problems = []
    for group, overrides in groups.items():
        for key, value in overrides.items():
            if key.lstrip("+~") in LAUNCHER_KEYS:
                problems.append(
                    Fp16PatchError(f"{source}: {group} sets {key}, which the launcher sets", next_step="remove it")
                )
            if not _is_plain(value):
                problems.append(
                    Fp16PatchError(
                        f"{source}: {group}: {key}={value!r} cannot be written as one override",
                        allowed="text, number, true, false, null, or a list of these",
                        next_step="give one dotted key per value",
                    )
                )
    return problems


def _ranges(recipe: Recipe, source: str) -> list[Fp16PatchError]:
    problems = []
    for name in (recipe.name, *recipe.arms):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            problems.append(Fp16PatchError(f"{source}: {name!r} names a folder", allowed="a-z, 0-9, '-' and '_'"))
    if not recipe.arms:
        problems.append(Fp16PatchError(f"{source}: arms is empty", next_step="add one, e.g. fp16: {precision: fp16}"))
    positive = {
        "hardware.ranks": recipe.hardware.ranks,
        "hardware.nodes": recipe.hardware.nodes,
        "hardware.timeout_minutes": recipe.hardware.timeout_minutes,
    }
    problems += [
        Fp16PatchError(f"{source}: {key}={value!r}", allowed="more than zero")
        for key, value in positive.items()
        if value <= 0
    ]
    problems += [
        Fp16PatchError(f"{source}: expected {e.metric} has no bound", allowed="at_least, at_most or both")
        for e in recipe.expected
        if e.at_least is None and e.at_most is None
    ]
    return problems


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)
