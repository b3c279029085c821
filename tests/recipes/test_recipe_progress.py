# SPDX-License-Identifier: Apache-2.0
"""What a user sees of a run, line by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fp16_patch.recipes.progress import Progress, duration


@pytest.fixture
def said() -> list[str]:
    return []


def row(step: int, **data: object) -> str:
    return json.dumps({"step": step, "data": data}) + "\n"


def test_phases_show_once_and_in_order(tmp_path: Path, said: list[str]) -> None:
    log = tmp_path / "train.log"
    progress = Progress(log, tmp_path / "metrics.jsonl", said.append, total_steps=None)
    progress.update()
    log.write_text("ray init kwargs: {}\n(A pid=1) create worker group\n(A pid=1) create wor")
    progress.update()
    with log.open("a") as file:
        file.write("ker group\nray init kwargs\nTraining Progress:   0%|  | 0/9 [00:00<?]\rTotal training steps: 9\n")
    progress.update()
    assert [line.split("  ")[-1] for line in said] == [
        "starting Ray",
        "starting the trainer ranks",
        "rollout and update of the first step",
    ]


def test_steps_show_progress_of_the_total_found_in_the_log(tmp_path: Path, said: list[str]) -> None:
    log, metrics = tmp_path / "train.log", tmp_path / "metrics.jsonl"
    progress = Progress(log, metrics, said.append, total_steps=None)
    log.write_text("(A pid=1) Total training steps: 9\n")
    metrics.write_text(row(0, **{"val/acc": 1.0}) + row(1, **{"critic/score/mean": 0.25, "timing_s/step": 2.0}))
    progress.update()
    assert len(said) == 1
    assert "step   1/9  reward 0.250  |pi-mu| -  KL -  loss scale -  2.0 s/step  left -" in said[0]
    with metrics.open("a") as file:
        file.write(row(2, **{"critic/score/mean": 0.5, "mismatch/k3_kl": None}) + '{"step": 3, "da')
    progress.update()
    assert len(said) == 2
    assert "left 0:0" in said[1]


def test_silence_is_broken_by_a_sign_of_life(tmp_path: Path, said: list[str]) -> None:
    progress = Progress(tmp_path / "l", tmp_path / "m", said.append, total_steps=1, heartbeat_s=0.0)
    progress.update()
    assert "still alive: starting" in said[0]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
