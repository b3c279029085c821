# SPDX-License-Identifier: Apache-2.0
"""The cases by name, and the folder they write to. With the flag the patches are in force, without they are undone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine_ranks import Case, Result

from fp16_patch.loss_scaling import LossScaling
from fp16_patch.patching import undo
from fp16_patch.precision import Precision

CASES: dict[str, Case] = {}
STAGES = (1, 2, 3)
_FOLDER: list[Path] = []


def case(
    name: str,
    run: Callable[..., Result],
    /,
    *,
    ranks: int = 2,
    settings: LossScaling | None = None,
    precision: Precision | None = None,
    **options: Any,
) -> None:
    """``run(rank, settings=..., **options)`` under the flag."""
    chosen = precision or Precision(loss_scaling=settings or LossScaling())
    CASES[name] = Case(partial(run, settings=chosen.loss_scaling, **options), ranks, chosen)


def stock(name: str, run: Callable[..., Result], /, *, ranks: int = 2, **options: Any) -> None:
    """The same ``run(rank, settings=None, **options)``, of DeepSpeed as it comes."""
    CASES[f"stock-{name}"] = Case(partial(_without_patches, run, settings=None, **options), ranks, None)


def _without_patches(run: Callable[..., Result], rank: int, /, **options: Any) -> Result:
    assert not undo(), "somebody else has patched DeepSpeed since"
    return run(rank, **options)


def use_folder(folder: Path) -> None:
    _FOLDER[:] = [folder]


def folder() -> Path:
    return _FOLDER[0]
