# SPDX-License-Identifier: Apache-2.0
"""``--resume``: arms that completed are kept, if they would run the same way again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.lab.launch.run import ArmResult, run_recipe

Run = Callable[..., list[ArmResult]]
CRASH = ("{precision: fp16}", "{precision: fp16, overrides: {+stand_in.mode: crash}}")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(write_recipe: Callable[..., Path], stand_in: str, out: Path, said: list[str]) -> Run:
    def run(*edits: tuple[str, str], **chosen: Any) -> list[ArmResult]:
        return run_recipe(write_recipe(*edits), out, module=stand_in, say=said.append, **chosen)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_completed_arms_are_kept_and_the_others_run_again(run: Run, out: Path, said: list[str]) -> None:
    run(CRASH)
    (out / "fp16" / "checkpoints").mkdir()
    bf16 = contents(out / "bf16")
    with raises_code("output-holds-checkpoints", "fp16", "--resume"):
        run(arms=["fp16"])
    (result,) = run(resume=True)
    assert (result.arm, result.status) == ("fp16", "completed")
    assert contents(out / "bf16") == bf16
    assert f"bf16 has completed in {out} and is kept" in said
    assert json.loads((out / "earlier" / "fp16-1" / "result.json").read_text())["status"] == "failed"
    assert (out / "earlier" / "fp16-1" / "checkpoints").is_dir()
    assert run(resume=True) == []


def test_where_nothing_has_run_yet_it_says_so_and_runs_every_arm(run: Run, out: Path, said: list[str]) -> None:
    assert [result.status for result in run(resume=True)] == ["completed", "completed"]
    assert said[0] == f"--resume: no arm has run in {out}; every arm starts from its first step"


@pytest.mark.parametrize(
    ("edits", "chosen", "named"),
    [
        (
            [("total_training_steps: 4", "total_training_steps: 5")],
            {},
            "trainer.total_training_steps: it ran with 4, now it would run with 5",
        ),
        ([("{precision: bf16}", "{precision: fp32}")], {}, "precision@_global_: it ran with bf16, now"),
        ([], {"overrides": ["a.lr=2e-6"]}, "a.lr: it ran with nothing, now it would run with 2e-6"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_touched(
    run: Run, out: Path, edits: list[tuple[str, str]], chosen: dict[str, Any], named: str
) -> None:
    run(arms=["bf16"])
    before = contents(out)
    with raises_code("settings-differ", f"bf16 in {out}", named) as refused:
        run(*edits, resume=True, **chosen)
    assert len(refused.value.what.splitlines()) == 2, "one line for what differs"
    assert contents(out) == before


def test_a_folder_that_was_moved_goes_on_where_it_is(
    write_recipe: Callable[..., Path], stand_in: str, tmp_path: Path, said: list[str]
) -> None:
    recipe, here, there = write_recipe(("model:", "platform: cpu\nmodel:")), tmp_path / "a", tmp_path / "b"
    run_recipe(recipe, here, arms=["bf16"], module=stand_in, say=said.append)
    here.rename(there)
    (there / ".lock").unlink()  # as a copy without hidden files
    assert run_recipe(recipe, there, arms=["bf16"], module=stand_in, say=said.append, resume=True) == []
    assert f"bf16 has completed in {there} and is kept" in said


def test_other_versions_are_refused_by_name(run: Run, out: Path) -> None:
    run(arms=["bf16"])
    record = out / "bf16" / "result.json"
    result = json.loads(record.read_text())
    record.write_text(json.dumps({**result, "versions": result["versions"] | {"torch": "1.0"}}))
    with raises_code("settings-differ", "torch", "1.0"):
        run(resume=True)
