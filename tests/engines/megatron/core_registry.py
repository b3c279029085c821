# SPDX-License-Identifier: Apache-2.0
"""The cases by name, the layouts most of them run in, and the folder they write to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine_ranks import Case, Result

CASES: dict[str, Case] = {}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1": (1, {}),
    "1-replicated": (1, {"distributed": False}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2, "micro_batches": 2}),
    "vpp2": (2, {"pp": 2, "chunks": 2, "micro_batches": 2}),
    "dp2": (2, {}),
    "ep2": (2, {"ep": 2, "experts": 4}),
    "ep2-replicated": (2, {"ep": 2, "experts": 4, "distributed": False}),
}
"""Name -> ranks, and how the model and its optimizer are spread over them."""
_FOLDER: list[Path] = []


def case(name: str, run: Callable[..., Result], /, *, ranks: int = 1, **options: Any) -> None:
    """``run(rank, **options)``."""
    CASES[name] = Case(partial(run, **options), ranks, None)


def in_layout(name: str, run: Callable[..., Result], layout: str, /, **options: Any) -> None:
    ranks, spread = LAYOUTS[layout]
    case(f"{name}-{layout}", run, ranks=ranks, **spread, **options)


def use_folder(folder: Path) -> None:
    _FOLDER[:] = [folder]


def folder() -> Path:
    return _FOLDER[0]
