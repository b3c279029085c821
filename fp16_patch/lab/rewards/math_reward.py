# SPDX-License-Identifier: Apache-2.0
"""The paper's reward on mathematics: 1 where math-verify finds the answer in the last box right, else 0.

For verl's ``custom_reward_function.path`` and OpenRLHF's ``--reward.remote_url``. Both load this file by itself, so it
imports nothing of this package. An answer cut off before its box is closed gets 0, as in the paper.

A policy may answer ``9^{9^{9}}``, over which math-verify computes with no end in sight, and a trainer calls this
outside its main thread, where math-verify's own time limits do not work. So answers are judged in a process of their
own, which the system ends after ``LIMIT_S`` seconds over one answer; that answer gets 0, and a new process goes on.
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
    """For verl. Raises ``ModuleNotFoundError`` without math-verify, ``RuntimeError`` when the judge itself breaks."""
    box = solution_str.rfind(_BOX)
    return _JUDGE.score(solution_str[box:], ground_truth) if box >= 0 else 0.0


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, Any]:
    """The same for OpenRLHF, whose queries are the prompt and the answer in one text."""
    import torch

    answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    scores = [compute_score("", answer, label) for answer, label in zip(answers, labels, strict=True)]
    return {"rewards": torch.tensor(scores), "scores": torch.tensor(scores), "extra_logs": {}}


class _Judge:
    """Asks the other process about one answer at a time, from any thread; starts it when there is none."""

    # Not as a script: the folder of this file would come first where it looks for modules.
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
        if self._process is None or self._owner != os.getpid():  # a fork does not share its parent's
            if importlib.util.find_spec("math_verify") is None:
                raise ModuleNotFoundError("the reward on mathematics needs math-verify: pip install math-verify")
            command = [sys.executable, "-c", self._START, __file__]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
            self._owner = os.getpid()
        return self._process


_JUDGE = _Judge()


def _judge_lines() -> None:
    """The other process: ``[answer, truth]`` a line in, a score a line out, until there are no more."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # that its time limits are off
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other end, whose end is ours
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        answer, truth = json.loads(line)
        signal.alarm(LIMIT_S)
        wanted = parse(f"{_BOX}{truth}}}", parsing_timeout=None)
        score = float(verify(wanted, parse(answer, parsing_timeout=None), timeout_seconds=None))
        signal.alarm(0)
        print(score, flush=True)
