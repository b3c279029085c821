# SPDX-License-Identifier: Apache-2.0
"""Score mathematics as in the paper: 1 if math-verify accepts the answer in the last box, else 0.

Use it as verl's ``custom_reward_function.path`` or OpenRLHF's ``--reward.remote_url``. Both load this file alone, so it
imports nothing from this package. An answer that is cut off before its box is closed gets 0, as in the paper.

math-verify computes practically forever on an answer such as ``9^{9^{9}}``, and its own time limits do not work outside
the main thread, where trainers call rewards. Answers are therefore scored in a separate process. The system kills it
after ``LIMIT_S`` seconds on one answer; that answer gets 0, and a new process scores the next.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

LIMIT_S = 5
_BOX = "\\boxed{"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
) -> float:
    """Return the score of one answer, 1.0 or 0.0, as verl calls it.

    Raises:
        ModuleNotFoundError: If math-verify is not installed.
        RuntimeError: If the scoring process fails.
    """
    box = solution_str.rfind(_BOX)
    return _JUDGE.score(solution_str[box:], ground_truth) if box >= 0 else 0.0


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """Return the scores as OpenRLHF calls it, with the prompt and the answer in one query."""
    import torch

    answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    scores = [compute_score("", answer, label) for answer, label in zip(answers, labels, strict=True)]
    return {"rewards": torch.tensor(scores), "scores": torch.tensor(scores), "extra_logs": {}}


class _Judge:
    """Send answers to the scoring process, one at a time and from any thread; start it if it is not running."""

    # Not as a script: that would put this file's folder first on sys.path.
    _START = "import runpy, sys; runpy.run_path(sys.argv[1])['_judge_lines']()"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def score(self, answer: str, truth: str) -> float:
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps([answer, truth]) + "\n")
                process.stdin.flush()
            if verdict := process.stdout.readline():
                return float(verdict)
            self._process = None
            if (code := process.wait()) != -signal.SIGALRM:
                raise RuntimeError(f"the process that runs math-verify ended with exit code {code}")
            return 0.0

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid():  # a forked process needs its own
            if importlib.util.find_spec("math_verify") is None:
                raise ModuleNotFoundError("the reward on mathematics needs math-verify: pip install math-verify")
            command = [sys.executable, "-c", self._START, __file__]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
            self._owner = os.getpid()
        return self._process


_JUDGE = _Judge()


def _judge_lines() -> None:
    """Run the scoring process: read ``[answer, truth]`` lines, write one score per line, until the input ends."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # math-verify warns that its time limits are off
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and its end ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        answer, truth = json.loads(line)
        signal.alarm(LIMIT_S)
        wanted = parse(f"{_BOX}{truth}}}", parsing_timeout=None)
        score = float(verify(wanted, parse(answer, parsing_timeout=None), timeout_seconds=None))
        signal.alarm(0)
        print(score, flush=True)
