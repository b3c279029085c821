# SPDX-License-Identifier: Apache-2.0
"""Arms run at the same time on their own GPUs, and the end of one does not end the others."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.cli import main
from fp16_patch.lab.arms import preflight
from fp16_patch.lab.arms.preflight import Needs
from fp16_patch.lab.launch import arm_process, gpu_assignment
from fp16_patch.lab.launch.plan import make_plan
from fp16_patch.lab.launch.run import run_recipe
from fp16_patch.lab.launch.signals import uninterrupted
from fp16_patch.lab.loading.load import find, load
from fp16_patch.lab.logs.runs import read_run
from fp16_patch.lab.trainers import TRAINERS

Write = Callable[..., Path]
Launcher = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda count: monkeypatch.setattr(preflight, "gpus_here", lambda: count)


def places(
    gpus_of_an_arm: int, jobs: int | None, *, recipe: str = "sanity-grpo", arms: int = 2
) -> list[gpu_assignment.Place]:
    return gpu_assignment.environments(load(find(recipe)), [needing(gpus_of_an_arm)] * arms, jobs)


def needing(gpus: int, *, whole: bool = True) -> Needs:
    return Needs(("trainer.n_gpus_per_node", gpus), ("trainer.nnodes", 1), ("model", "m"), {}, whole)


@pytest.mark.parametrize(
    ("there", "of_an_arm", "jobs", "expected"),
    [
        (8, 8, None, [None]),
        (8, 4, None, ["0,1,2,3", "4,5,6,7"]),
        (8, 4, 1, [None]),
        (9, 2, None, ["0,1", "2,3"]),
        (8, 2, 4, ["0,1", "2,3"]),
        (0, 8, None, [None]),
    ],
)
def test_as_many_as_the_gpus_hold(
    gpus: Callable[[int], None], there: int, of_an_arm: int, jobs: int | None, expected: list[str | None]
) -> None:
    gpus(there)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in places(of_an_arm, jobs)] == expected


def test_of_the_gpus_that_are_visible(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert places(1, None) == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]


def test_more_than_the_gpus_hold_is_refused(gpus: Callable[[int], None]) -> None:
    gpus(8)
    with raises_code("not-enough-gpus", "--jobs 3", "16 GPUs", "has 8", "allowed: 1 to 1"):
        places(8, 3)


def test_arms_that_differ_all_find_room(gpus: Callable[[int], None]) -> None:
    gpus(8)
    assert gpu_assignment.environments(load(find("sanity-grpo")), [needing(4), needing(8)], None) == [{}]


def test_arms_with_more_gpus_than_the_trainers_run_one_at_a_time(gpus: Callable[[int], None]) -> None:
    gpus(8)
    arms = [needing(2, whole=False)] * 2
    assert gpu_assignment.environments(load(find("sanity-grpo")), arms, None) == [{}]
    with raises_code("gpus-unknown", "--jobs 2", "next step"):
        gpu_assignment.environments(load(find("sanity-grpo")), arms, 2)


@pytest.mark.parametrize(
    ("framework", "override", "whole"),
    [
        ("verl", "trainer.test_freq=3", True),
        ("verl", "reward.reward_model.enable_resource_pool=True", False),
        ("verl", "distillation.enabled=true", False),
        ("openrlhf", "eval.steps=3", True),
        ("openrlhf", "train.colocate_all=false", False),
    ],
)
def test_what_takes_gpus_of_its_own_is_seen(tmp_path: Path, framework: str, override: str, whole: bool) -> None:
    plan = make_plan(find("sanity-grpo"), tmp_path, framework=framework, arms=["fp16"], overrides=[override])
    assert TRAINERS[framework].needs(plan.commands["fp16"]).whole is whole


def test_on_a_cluster_and_on_a_cpu_only_where_asked(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(64)
    assert places(1, None, recipe="quickstart") == [{}]
    assert places(1, 2, recipe="quickstart") == [{}, {}]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert places(8, None) == [{}]
    assert places(8, 2) == [{}, {}]


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_a_number_of_jobs_that_is_none(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "run", "quickstart", "--jobs", jobs]) == 2
    assert "--jobs" in capsys.readouterr().err


def test_two_at_a_time_on_their_own_gpus_and_one_that_crashes_stops_no_other(
    gpus: Callable[[int], None], write_recipe: Write, stand_in: str, tmp_path: Path
) -> None:
    gpus(2)
    said: list[str] = []
    recipe = write_recipe(
        ("{precision: bf16}", "{precision: bf16, overrides: {+stand_in.mode: meet}}"),
        ("{precision: fp16}", "{precision: fp16, overrides: {+stand_in.mode: meet}}\n  third: {precision: fp16}"),
    )
    results = run_recipe(
        recipe, tmp_path / "run", overrides=[f"+stand_in.traces={tmp_path}"], jobs=2, say=said.append, module=stand_in
    )
    assert [(result.arm, result.status) for result in results] == [
        ("bf16", "failed"),
        ("fp16", "completed"),
        ("third", "completed"),
    ]
    assert "ValueError: met, and crashed" in str(results[0].error)
    visible = {place.stem: json.loads(place.read_text()) for place in tmp_path.glob("met-*.json")}
    assert sorted(visible.values()) == ["0", "1"]
    assert any(line.startswith("bf16: ") and line.endswith("everything is up") for line in said), said
    _, arms = read_run(tmp_path / "run")
    assert "fp16 ran concurrently with other arms: its seconds are not those of an arm alone" in arms[1].notes()
    assert "CUDA_VISIBLE_DEVICES" not in (tmp_path / "run" / "fp16" / "command.sh").read_text()


def test_an_interruption_ends_them_all(write_recipe: Write, start_launcher: Launcher, tmp_path: Path) -> None:
    recipe = write_recipe(("model:", "platform: cpu\nmodel:"))
    launcher = start_launcher(recipe, mode="wait", jobs=2)
    try:
        deadline = time.monotonic() + 30
        while len(found := list(tmp_path.glob("waits-*"))) < 2:
            assert time.monotonic() < deadline, f"only {found} started"
            time.sleep(0.05)
        launcher.send_signal(signal.SIGINT)
        output, _ = launcher.communicate(timeout=30)
    finally:
        launcher.kill()
    assert "bf16: interrupted" in output
    assert "fp16: interrupted" in output
    for arm in ("bf16", "fp16"):
        assert json.loads((tmp_path / "run" / arm / "result.json").read_text())["status"] == "interrupted"
    for waits in found:
        assert not Path(f"/proc/{waits.name.partition('-')[2]}").exists(), "an arm was left running"


def test_a_result_that_cannot_be_kept_ends_no_other_arm(
    write_recipe: Write, stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(("model:", "platform: cpu\nmodel:"))
    write = arm_process.write_atomically

    def full(path: Path, text: str) -> Path:
        if path.parent.name == "bf16":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(arm_process, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run_recipe(recipe, tmp_path / "run", jobs=2, say=lambda _: None, module=stand_in)
    assert json.loads((tmp_path / "run" / "fp16" / "result.json").read_text())["status"] == "completed"


def test_a_signal_during_the_cleaning_up_takes_effect_after_it() -> None:
    done: list[str] = []

    def clean_up() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    assert done == ["inner", "outer"]
