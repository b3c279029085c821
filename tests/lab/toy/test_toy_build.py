# SPDX-License-Identifier: Apache-2.0
"""The whole build at a small scale: really trained, really filtered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.lab.toy.settings import Settings
from fp16_patch.lab.toy.task import token_limits
from fp16_patch.lab.toy.toy_task import ToyTask, build, untrained_toy_task

pytest.importorskip("torch")
pytest.importorskip("transformers")
parquet = pytest.importorskip("pyarrow.parquet")

SMALL = Settings(digits=2, layers=2, max_steps=200, target=0.2, train=8, val=4, samples=10)
WRITTEN = ("model/model.safetensors", "train.parquet", "val.parquet", "train.jsonl", "val.jsonl")


def quiet(line: str) -> None: ...


def rows(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ToyTask:
    return build(tmp_path_factory.mktemp("toy") / "world", 0, quiet, SMALL)


def test_rows_are_what_verl_reads(task: ToyTask) -> None:
    train, val = rows(task.train), rows(task.val)
    assert (len(train), len(val)) == (SMALL.train, SMALL.val)
    for split, kept in (("train", train), ("val", val)):
        for index, row in enumerate(kept):
            (message,) = row["prompt"]
            digits = message["content"].removesuffix("=").split("+")
            assert message["role"] == "user"
            assert row["reward_model"] == {"style": "rule", "ground_truth": str(sum(map(int, digits)))}
            assert row["extra_info"]["index"] == index
            assert row["extra_info"]["split"] == split


def test_openrlhf_reads_the_same_prompts_and_answers(task: ToyTask, tmp_path: Path) -> None:
    prompts_dataset = pytest.importorskip("openrlhf.datasets.prompts_dataset")
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(task.model)
    for jsonl, parquet in ((task.train_prompts, task.train), (task.val_prompts, task.val)):
        loaded = datasets.load_dataset("json", data_files=str(jsonl), cache_dir=str(tmp_path))["train"]
        read = [prompts_dataset.preprocess_data(row, None, "input", "label") for row in loaded]
        assert read == [
            (
                tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True),
                row["reward_model"]["ground_truth"],
            )
            for row in rows(parquet)
        ], "the policy would see other prompts under OpenRLHF than under verl"


def test_only_problems_within_reach_are_kept(task: ToyTask) -> None:
    rates = [row["extra_info"]["solve_rate"] for row in rows(task.train) + rows(task.val)]
    assert all(0.2 <= rate <= 0.8 for rate in rates), rates
    assert sum(task.manifest["solve_rate_histogram"]) == task.manifest["candidates"]
    mean = sum(rates[: SMALL.train]) / SMALL.train
    assert task.manifest["accuracy_before"]["train"] == pytest.approx(mean, abs=1e-4)


def test_validation_is_held_out_up_to_the_order_of_digits(task: ToyTask) -> None:
    def contents(path: Path) -> set[str]:
        return {"".join(sorted(row["prompt"][0]["content"])) for row in rows(path)}

    assert not contents(task.train) & contents(task.val)


def test_the_same_seed_makes_the_same_task(task: ToyTask, tmp_path: Path) -> None:
    again = build(tmp_path / "again", 0, quiet, SMALL)
    for name in WRITTEN:
        assert (again.path / name).read_bytes() == (task.path / name).read_bytes(), name


def test_an_intact_task_is_not_rebuilt_and_a_damaged_one_is(tmp_path: Path) -> None:
    tiny = replace(SMALL, layers=1, max_steps=25, target=0.0, train=2, val=1, keep_from=0, keep_to=1)
    out, told = tmp_path / "world", []
    first = build(out, 0, told.append, tiny)
    told.clear()
    assert build(out, 0, told.append, tiny).manifest == json.loads((out / "world.json").read_text())
    assert told == [f"{out} is up to date"]

    first.train.write_bytes(first.train.read_bytes()[:-1])
    told.clear()
    build(out, 0, told.append, tiny)
    assert len(told) > 1, "a truncated train.parquet went unnoticed"
    assert rows(first.train)

    told.clear()
    assert build(out, 1, told.append, tiny).manifest["seed"] == 1
    assert len(told) > 1, "another seed is another task"


def test_an_interrupted_build_leaves_what_was_there(task: ToyTask, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("sampled"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "world", 0, interrupt, SMALL)
    assert list(tmp_path.iterdir()) == []

    before = {path: path.stat().st_mtime_ns for path in task.path.rglob("*")}
    with pytest.raises(KeyboardInterrupt):
        build(task.path, 1, interrupt, SMALL)
    assert {path: path.stat().st_mtime_ns for path in task.path.rglob("*")} == before
    assert list(task.path.parent.iterdir()) == [task.path]


def test_a_folder_that_is_not_a_toy_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with raises_code("output-in-the-way", tmp_path):
        build(tmp_path, 0, quiet, SMALL)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_policy_that_does_not_learn_is_an_error(tmp_path: Path) -> None:
    hopeless = Settings(digits=2, layers=1, max_steps=25, target=0.99)
    with raises_code("toy-world-failed", "25 steps"):
        build(tmp_path / "world", 0, quiet, hopeless)


def test_too_few_problems_within_reach_is_an_error(tmp_path: Path) -> None:
    greedy = Settings(digits=2, layers=1, max_steps=25, target=0.0, samples=2, train=44, val=2)
    with raises_code("toy-world-failed", "45 problems"):
        build(tmp_path / "world", 0, quiet, greedy)


def test_the_untrained_task_has_the_same_files(task: ToyTask, tmp_path: Path) -> None:
    untrained = untrained_toy_task(tmp_path / "untrained", train=16, val=8)
    assert (len(rows(untrained.train)), len(rows(untrained.val))) == (16, 8)
    assert set(untrained.manifest["files"]) == set(task.manifest["files"])
    assert untrained.manifest["max_response_tokens"] == token_limits(5)[1]
    assert untrained.reward.is_file()
    assert len(untrained.val_prompts.read_text().splitlines()) == 8
