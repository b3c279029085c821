# SPDX-License-Identifier: Apache-2.0
"""Collect the cases of the case files, and share what most cases do with an engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine_building import held_gradients, new_batch
from engine_ranks import Case, Result
from verl.workers.utils.losses import sft_loss

from fp16_patch.precision import Precision

FLAG: dict[str, Case] = {}
STOCK: dict[str, Case] = {}
STRATEGIES = ("fsdp", "fsdp2")

FP16, BF16, FP32 = (Precision(name, name) for name in ("fp16", "bf16", "fp32"))

_FOLDER: list[Path] = []


def case(name: str, run: Callable[[int], Result], *, ranks: int = 2, precision: Precision = FP16) -> None:
    FLAG[name] = Case(run, ranks, precision)


def stock(name: str, run: Callable[[int], Result], *, ranks: int = 2) -> None:
    STOCK[name] = Case(run, ranks, None)


def use_folder(folder: Path) -> None:
    """Set the folder where the cases of this process write and find their model."""
    _FOLDER[:] = [folder]


def folder() -> Path:
    return _FOLDER[0]


def model() -> Path:
    return folder() / "model"


def describe(engine: Any) -> dict[str, str]:
    from fp16_patch.frameworks.verl.trainer_fsdp.engine import describe_engine

    return describe_engine(engine)


class Loss:
    """One of verl's losses that records the dtype that goes into the backward, and the gradients held by then."""

    def __init__(self, engine: Any, loss: Callable[..., Any] | None = None) -> None:
        self.engine, self.loss = engine, loss or partial(sft_loss, None)
        self.dtypes: set[str] = set()
        self.held: list[list[str]] = []

    def __call__(self, model_output: Any, data: Any, dp_group: Any = None) -> Any:
        self.held.append(held_gradients(self.engine))
        loss, metrics = self.loss(model_output=model_output, data=data, dp_group=dp_group)
        self.dtypes.add(str(loss.dtype).removeprefix("torch."))
        return loss, metrics


def train(engine: Any, rank: int, loss: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Make one update on this rank's batch. Return the metrics that verl would log."""
    with engine.train_mode():
        return engine.train_batch(new_batch(rank), loss or Loss(engine))["metrics"]


def infer(engine: Any, rank: int) -> None:
    with engine.eval_mode():
        engine.infer_batch(new_batch(rank))
