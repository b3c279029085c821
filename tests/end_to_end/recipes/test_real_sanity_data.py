# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch recipes data sanity`` with the real vLLM: killed in the middle, it resumes to the same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.lab.toy import ToyTask

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]

PROBLEMS, SAMPLES, BATCH = 24, 8, 2
REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """An untrained policy adds up nothing; a bit of luck is within its reach."""
    return float(solution_str[:1].isalpha())
'''


def command(world: ToyTask, out: Path, *more: str) -> list[str]:
    reward = out.parent / "reward.py"
    reward.write_text(REWARD)
    # fmt: off
    return [
        sys.executable, "-m", "fp16_patch.cli", "recipes", "data", "sanity",
        "--model", str(world.model), "--dataset", str(world.train), "--reward", str(reward), "--out", str(out),
        "--limit", str(PROBLEMS), "--samples", str(SAMPLES), "--batch", str(BATCH), "--max-tokens", "32",
        "--vllm", "enforce_eager=true", "--vllm", "kv_cache_memory_bytes=16777216", *more,
    ]
    # fmt: on


@contextmanager
def running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process group of its own, of which nothing is left."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def build(words: list[str], log: Path) -> str:
    with running(words, log) as process:
        code = process.wait(timeout=200)
    said = log.read_text(errors="replace")
    assert code == 0, said[-4000:]
    return said


def answers(out: Path) -> dict[str, dict[str, Any]]:
    lines = (out / "train.sampling" / "answers.jsonl").read_text().splitlines()
    return {row["key"]: row for row in map(json.loads, lines)}


def test_killed_and_resumed_it_ends_up_where_it_would_have_anyway(world: ToyTask, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    build(command(world, whole), tmp_path / "whole.log")

    file = killed / "train.sampling" / "answers.jsonl"
    with running(command(world, killed), tmp_path / "killed.log") as process:
        while not file.exists() or not file.read_text().count("\n"):
            assert process.poll() is None, (tmp_path / "killed.log").read_text(errors="replace")[-4000:]
            time.sleep(0.002)
        process.kill()
    before = file.read_text()
    assert 0 < before.count("\n") < PROBLEMS, "to be killed in the middle, it was too fast"
    assert not (killed / "train.parquet").exists()
    file.write_text(before + '{"key": "half a li')

    said = build(command(world, killed), tmp_path / "resumed.log")
    assert f"{before.count(chr(10))} of {PROBLEMS} problems" in said
    assert file.read_text().startswith(before), "what was sampled before the kill is not sampled again"
    assert answers(killed) == answers(whole)
    assert len(answers(whole)) == PROBLEMS
    for name in ("train.parquet", "train.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name

    manifest = json.loads((whole / "train.manifest.json").read_text())
    assert manifest["tried"] == PROBLEMS == sum(manifest["solve_rate_histogram"])
    assert 0 < manifest["kept"] <= PROBLEMS
    assert manifest["answers"] == PROBLEMS * SAMPLES
    sampled = answers(whole).values()
    assert all(len(row["answers"]) == SAMPLES for row in sampled)
    assert len({answer for row in sampled for answer in row["answers"]}) > PROBLEMS, "the answers are all alike"

    _another_range_samples_nothing(world, whole, tmp_path)


def _another_range_samples_nothing(world: ToyTask, whole: Path, tmp_path: Path) -> None:
    more = ["--keep", "0", "1", "--vllm", "gpu_memory_utilization=0.1"]
    said = build(command(world, whole, *more), tmp_path / "again.log")
    assert "loading" not in said
    manifest = json.loads((whole / "train.manifest.json").read_text())
    assert manifest["vllm"] == [{"enforce_eager": True, "kv_cache_memory_bytes": 16777216}], "not what sampled"
    assert len((whole / "train.jsonl").read_text().splitlines()) == PROBLEMS
