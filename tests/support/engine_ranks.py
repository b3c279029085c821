# SPDX-License-Identifier: Apache-2.0
"""Run a case on a few ranks: fork them from one process that has imported torch and verl already."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp16_patch import envs
from fp16_patch.precision import Precision

SECONDS = 150.0
"""How long one case may take; a rank that waits for a peer that failed would wait for ever."""

NO_RESULT = "no-result"
"""The code of a rank that ended without a result, such as one that was killed."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """``run(rank)`` returns what the test looks at, JSON-able; ``precision`` is the flag, None without it."""

    run: Callable[[int], Result]
    ranks: int
    precision: Precision | None


def describe_error(error: Exception) -> Result:
    """Return an error's text, and its code and those of its parts if it is one of this package's."""
    return {"error": str(error), "code": getattr(error, "code", None), "codes": list(getattr(error, "codes", ()))}


def run_all(cases: Mapping[str, Case], folder: Path, chosen: Sequence[str] = ()) -> None:
    """Run the chosen cases, or all, and print how long each takes."""
    for name, case in cases.items():
        if not chosen or name in chosen:
            start = time.monotonic()
            run_case(name, case, folder)
            print(f"== {name}: {time.monotonic() - start:.1f} s", flush=True)


def run_case(name: str, case: Case, folder: Path) -> None:
    """Write ``<name>.<rank>.json`` into ``folder`` for every rank: ``{"result": ...}`` or ``{"error": ...}``."""
    ranks = {_fork(name, case, rank, folder): rank for rank in range(case.ranks)}
    deadline = time.monotonic() + SECONDS
    while ranks:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank = ranks.pop(pid)
            if not (path := _path(folder, name, rank)).exists():
                path.write_text(json.dumps({"error": f"rank {rank} ended, see the log", "code": NO_RESULT}))
        elif time.monotonic() > deadline:
            for late, rank in ranks.items():
                _path(folder, name, rank).write_text(json.dumps({"error": f"not done within {SECONDS:.0f} s"}))
                os.kill(late, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.01)


def _path(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name}.{rank}.json"


def _fork(name: str, case: Case, rank: int, folder: Path) -> int:
    if pid := os.fork():
        return pid
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(case.ranks))
        if case.precision is not None:
            os.environ[envs.PRECISION] = case.precision.to_environment()
        outcome = _outcome(case, rank, folder / f"{name}.store")
        _path(folder, name, rank).write_text(json.dumps(outcome))
    finally:
        os._exit(0)  # the parent's exit handlers are not this process's


def _outcome(case: Case, rank: int, store: Path) -> Result:
    import torch

    try:
        torch.distributed.init_process_group(
            "cpu:gloo", init_method=store.absolute().as_uri(), rank=rank, world_size=case.ranks
        )
        torch.manual_seed(rank)
        result = case.run(rank)
        torch.distributed.barrier()  # a rank that leaves takes its connections along
    except Exception as error:  # the parent test prints it
        return describe_error(error) | {"error": traceback.format_exc()}
    return {"result": result}
