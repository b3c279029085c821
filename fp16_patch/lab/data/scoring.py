# SPDX-License-Identifier: Apache-2.0
"""Score sampled answers with a reward, a Python file with ``compute_score``, in several processes."""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab import extras

REWARDS = {
    "math": Path(__file__).parents[1] / "rewards" / "math_reward.py",
    "exact": Path(__file__).parents[1] / "rewards" / "exact_reward.py",
}
"""Name to file. Any other reward is the path of a file."""


class ScoringCase(NamedTuple):
    """Hold a problem's dataset name, its right answer, and the sampled answers."""

    source: str
    truth: str
    answers: tuple[str, ...]


def reward_file(reward: str) -> Path:
    """Return the file of a reward.

    Raises:
        Fp16PatchError: If the file, its function or math-verify is missing.
    """
    path = REWARDS.get(reward, Path(reward).expanduser())
    if not path.is_file():
        allowed = f"{', '.join(REWARDS)}, or a Python file with compute_score, as verl's custom_reward_function.path"
        raise Fp16PatchError(
            f"--reward {reward}: no such file",
            code="reward-not-found",
            allowed=allowed,
            next_step="choose one of these, or check the path",
        )
    if reward == "math" and importlib.util.find_spec("math_verify") is None:
        raise extras.missing("math_verify", "--reward math")
    _load(path)
    return path


def count_solved(reward: Path, cases: Iterable[ScoringCase]) -> Iterator[int]:
    """Yield the number of right answers of each case, in order. A right answer scores 1 or more.

    If the reward returns a dict, as verl allows, its ``acc`` counts, else its ``score``. ``cases`` are consumed a few
    at a time, because all answers together may not fit in memory.

    Raises:
        Fp16PatchError: If the reward fails on an answer.
    """
    # Not forked: this process has threads, and on a GPU a context, of vLLM.
    context, workers = multiprocessing.get_context("spawn"), min(os.cpu_count() or 1, 16)
    waiting: deque[Future[int]] = deque()
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for case in cases:
                waiting.append(pool.submit(_count, reward, case))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except Fp16PatchError:
            raise
        except Exception as error:
            pool.shutdown(cancel_futures=True)
            raise Fp16PatchError(
                f"--reward {reward} failed on an answer: {error!r}",
                code="reward-failed",
                next_step="the answers are stored: fix the reward and run the same command again",
            ) from error


def _count(reward: Path, case: ScoringCase) -> int:
    compute_score = _load(reward)
    return sum(_is_right(compute_score(case.source, answer, case.truth, {})) for answer in case.answers)


def _is_right(score: Any) -> bool:
    return bool(score.get("acc", score.get("score", 0) >= 1) if isinstance(score, dict) else score >= 1)


@functools.cache
def _load(path: Path) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("custom_module", path)
    if spec is None or spec.loader is None:
        raise Fp16PatchError(f"--reward {path} is not a Python file", code="reward-unusable", next_step="name one")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code
        raise Fp16PatchError(
            f"--reward {path} cannot be loaded: {error!r}",
            code="reward-unusable",
            next_step="fix it and run the same command again",
        ) from error
    function = getattr(module, "compute_score", None)
    if not callable(function):
        raise Fp16PatchError(
            f"--reward {path} has no function compute_score",
            code="reward-unusable",
            allowed="compute_score with verl's signature",
            next_step="add it, or name another file",
        )
    return function  # type: ignore[no-any-return]
