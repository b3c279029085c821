# SPDX-License-Identifier: Apache-2.0
"""Print the progress of a run: its phases, one line per training step, and a heartbeat."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fp16_patch.lab.duration import duration
from fp16_patch.lab.logs.series import has_metric, metric_value

_TOTAL_STEPS = re.compile(r"Total training steps: (\d+)")


class Progress:
    """Follow one arm's log and metrics file, and print what is new. Call :meth:`update` often.

    ``phases`` are texts in the log, in their order, with their meanings. Each is printed once.
    """

    def __init__(
        self,
        log: Path,
        metrics: Path,
        say: Callable[[str], None],
        *,
        phases: Sequence[tuple[str, str]],
        total_steps: int | None,
        heartbeat_s: float = 15.0,
    ) -> None:
        self._log, self._metrics = _NewLines(log), _NewLines(metrics)
        self._say, self._phases, self._total, self._heartbeat_s = say, phases, total_steps, heartbeat_s
        self._started = self._last_said = time.monotonic()
        self._reached = -1
        self._step_ends: deque[tuple[int, float]] = deque(maxlen=6)
        self.phase = "starting"

    def update(self) -> None:
        """Print new phases and steps, or the heartbeat after ``heartbeat_s`` seconds without any."""
        for line in self._log.read():
            self._look_at(line)
        for line in self._metrics.read():
            self._step(line)
        if time.monotonic() - self._last_said >= self._heartbeat_s:
            self._print(f"still alive: {self.phase}")

    def _look_at(self, line: str) -> None:
        if self._total is None and (match := _TOTAL_STEPS.search(line)):
            self._total = int(match[1])
        for i, (sign, words) in enumerate(self._phases):
            if i > self._reached and sign in line:
                self._reached, self.phase = i, words
                self._print(words)

    def _step(self, line: str) -> None:
        try:
            row = json.loads(line)
            step, data = int(row["step"]), dict(row["data"])
        except (ValueError, KeyError, TypeError):
            return
        if not has_metric(data, "reward"):  # verl logs validation under a step number of its own
            return
        self._step_ends.append((step, time.monotonic()))
        self._reached, self.phase = len(self._phases), f"step {step + 1}"
        self._print(step_line(step, self._total, data, self._remaining(step)))

    def _remaining(self, step: int) -> float | None:
        (first, start), (last, end) = self._step_ends[0], self._step_ends[-1]
        if self._total is None or last <= first:
            return None
        return (self._total - step) * (end - start) / (last - first)

    def _print(self, words: str) -> None:
        self._last_said = time.monotonic()
        self._say(f"  {duration(self._last_said - self._started):>7}  {words}")


def step_line(step: int, total: int | None, data: dict[str, Any], remaining_s: float | None) -> str:
    """Return one training step as one line, with ``-`` for what was not logged and ``nan`` for what is not finite."""

    def show(name: str, form: str) -> str:
        value = metric_value(data, name)
        missing = "nan" if has_metric(data, name) else "-"
        return missing if value is None else format(value, form)

    return (
        f"step {step:>3}/{total or '?'}  reward {show('reward', '.3f')}  |pi-mu| {show('prob_diff_mean', '.2e')}"
        f"  KL {show('k3_kl', '.2e')}  loss scale {show('loss_scale', 'g')}  {show('seconds', '.1f')} s/step"
        f"  left {'-' if remaining_s is None else duration(remaining_s)}"
    )


class _NewLines:
    """The complete lines added to a file since the last read. tqdm ends its lines with a carriage return."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._rest = path, 0, ""

    def read(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(new)
        *lines, self._rest = re.split(r"[\r\n]+", self._rest + new.decode("utf-8", errors="replace"))
        return lines
