# SPDX-License-Identifier: Apache-2.0
"""Collect the cases of the case files, and share what most cases do with an engine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine_building import new_batch
from engine_ranks import Case, Result
from megatron.core.dist_checkpointing.strategies import filesystem_async
from verl.workers.utils.losses import sft_loss

from fp16_patch.precision import Precision

CASES: dict[str, Case] = {}

LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "1": (1, {}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "dp2": (2, {}),
    "vpp2": (2, {"pp": 2, "virtual_pipeline_model_parallel_size": 2}),
    "tp2pp2": (4, {"tp": 2, "pp": 2}),
    "moe-1": (1, {}),
    "moe-ep2": (2, {"ep": 2}),
}
"""Name -> ranks, and how the model is spread over them."""

_FOLDER: list[Path] = []
_WRITER: list[Any] = []


def case(name: str, run: Callable[[int], Result], ranks: int, precision: Precision | None = None) -> None:
    CASES[name] = Case(partial(_with_writer, run), ranks, precision)


def _with_writer(run: Callable[[int], Result], rank: int) -> Result:
    filesystem_async._results_queue = _WRITER[0].Queue()
    return run(rank)


def use_folder(folder: Path) -> None:
    """Where the cases of this process write, and find their models.

    For its checkpoints Megatron starts a process, with torch imported, in each rank. One does for all cases here.
    """
    _FOLDER[:] = [folder]
    _WRITER[:] = [multiprocessing.get_context("spawn").Manager()]


def folder() -> Path:
    return _FOLDER[0]


def model(layout: str) -> Path:
    return folder() / ("experts" if layout.startswith("moe") else "dense")


LENGTHS = (4, 9, 6, 2, 7, 3, 5, 8)
"""Tokens in each response of the batch of all ranks."""


def batch(engine: Any, seed: int = 0) -> Any:
    """Return this rank's share of eight sequences, which are the same in every layout."""
    share = len(LENGTHS) // engine.get_data_parallel_size()
    first = engine.get_data_parallel_rank() * share
    return new_batch(seed, LENGTHS, slice(first, first + share))


def train(engine: Any, seed: int = 0, loss: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Make one update. Return what verl's engine returns on the ranks that have the loss, {} on the others."""
    with engine.train_mode():
        outputs = engine.train_batch(batch(engine, seed), loss or partial(sft_loss, None))
    engine.lr_scheduler_step()
    return outputs


def at_the_next_step(
    engine: Any, before: Callable[[], Any] = lambda: None, after: Callable[[], Any] = lambda: None
) -> None:
    """Do something right before the engine's next optimizer step, such as spoiling gradients, and right after it."""
    original = engine.optimizer_step

    def optimizer_step() -> Any:
        del engine.optimizer_step
        before()
        norm = original()
        after()
        return norm

    engine.optimizer_step = optimizer_step
