# SPDX-License-Identifier: Apache-2.0
"""What a user sees of a run, line by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fp16_patch.lab.duration import duration
from fp16_patch.lab.launch.progress import Progress
from fp16_patch.lab.trainers import TRAINERS

VERL, OPENRLHF = (TRAINERS[name].phases for name in ("verl", "openrlhf"))
OPENRLHF_LOG = """\
fp16_patch: precision fp16, 3 settings changed
2026-11-24 14:30:59,125	INFO worker.py:2029 -- Started a local Ray instance.
\x1b[36m(RolloutRayActor pid=7)\x1b[0m (MainProcess pid=7) INFO 11-24 14:31:34 [model.py:733] Resolved architecture: Q
\x1b[36m(PPOTrainer pid=8)\x1b[0m dataset: world/train.jsonl
\x1b[36m(PolicyModelActor pid=9)\x1b[0m Actor(
\x1b[36m(RolloutRayActor pid=7)\x1b[0m (EngineCore pid=10) INFO [core.py:133] Initializing a V1 LLM engine
\x1b[36m(RolloutRayActor pid=7)\x1b[0m init_process_group: master_address=192.0.2.2, master_port=54027,  rank=1
\x1b[36m(PPOTrainer pid=8)\x1b[0m Episode [1/1]:   0%|          | 0/24 [00:00<?, ?it/s]
"""


@pytest.fixture
def said() -> list[str]:
    return []


def row(step: int, **data: object) -> str:
    return json.dumps({"step": step, "data": data}) + "\n"


def test_phases_show_once_and_in_order(tmp_path: Path, said: list[str]) -> None:
    log = tmp_path / "train.log"
    progress = Progress(log, tmp_path / "metrics.jsonl", said.append, phases=VERL, total_steps=None)
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


def test_an_openrlhf_log_shows_every_phase_and_its_steps(tmp_path: Path, said: list[str]) -> None:
    log, metrics = tmp_path / "train.log", tmp_path / "metrics.jsonl"
    progress = Progress(log, metrics, said.append, phases=OPENRLHF, total_steps=20)
    log.write_text(OPENRLHF_LOG)
    metrics.write_text(row(1, **{"rollout/reward_mean": 0.25, "actor/loss_scale": 1024.0, "timing/step_total": 2.0}))
    progress.update()
    assert [line.split("  ")[-1] for line in said[:-1]] == [words for _, words in OPENRLHF]
    assert "step   1/20  reward 0.250  |pi-mu| -  KL -  loss scale 1024  2.0 s/step" in said[-1]


def test_steps_show_progress_of_the_total_found_in_the_log(tmp_path: Path, said: list[str]) -> None:
    log, metrics = tmp_path / "train.log", tmp_path / "metrics.jsonl"
    progress = Progress(log, metrics, said.append, phases=VERL, total_steps=None)
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


def test_a_step_that_is_not_finite_is_shown(tmp_path: Path, said: list[str]) -> None:
    metrics = tmp_path / "metrics.jsonl"
    progress = Progress(tmp_path / "l", metrics, said.append, phases=VERL, total_steps=9)
    metrics.write_text(row(1, **{"critic/score/mean": None, "mismatch/k3_kl": None}))
    progress.update()
    assert "step   1/9  reward nan  |pi-mu| -  KL nan" in said[0]


def test_silence_is_broken_by_a_sign_of_life(tmp_path: Path, said: list[str]) -> None:
    progress = Progress(tmp_path / "l", tmp_path / "m", said.append, phases=VERL, total_steps=1, heartbeat_s=0.0)
    progress.update()
    assert "still alive: starting" in said[0]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
