# SPDX-License-Identifier: Apache-2.0
"""Rows of the datasets that recipes name become problems; what is missing is one error that says what to fetch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.lab.data.fields import Columns, extract_answer, question_and_answer
from fp16_patch.lab.data.output import dataset_facts
from fp16_patch.lab.data.problem import Message, user_message
from fp16_patch.lab.data.reading import DatasetSpec, ReadResult, read
from fp16_patch.lab.data.source import Source
from fp16_patch.lab.data.templates import BOXED

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        # MATH: the answer is in the last box of the solution
        ({"problem": "Q", "type": "Algebra", "solution": r"\boxed{1}, so \boxed{\frac{1}{2}}."}, "Q",
         r"\frac{1}{2}"),
        # MATH with the answer beside it, math_12k
        ({"problem": "Q", "solution": r"so \boxed{9}", "answer": "3"}, "Q", "3"),
        # GSM8K
        ({"question": "Q", "answer": "It is 1 + 2 = <<1+2=3>>3.\n#### 1,003"}, "Q", "1003"),
        # AIME, in three spellings
        ({"ID": "2024-I-1", "Problem": "Q", "Solution": "so", "Answer": 204}, "Q", "204"),
        ({"id": 1, "problem": "Q", "solution": "so", "answer": "025", "year": "2024"}, "Q", "025"),
        ({"problem": "Q", "solution": r"\boxed{204}"}, "Q", "204"),
        # DAPO-Math-17k: its own request for "Answer:" goes
        ({"prompt": [{"role": "user", "content": DAPO.format("Q\n\nmore")}], "reward_model": {"ground_truth": "34"}},
         "Q\n\nmore", "34"),
        # any other data in verl's format: the prompt is kept
        ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
          "reward_model": {"ground_truth": "34"}}, (Message("system", "S"), Message("user", "Q")), "34"),
        # OpenRLHF's
        ({"input": "Q", "label": "34"}, "Q", "34"),
        ({"problem": "Q", "answer": None}, "Q", ""),
        # an empty cell is no column
        ({"problem": None, "question": "Q", "answer": None, "solution": r"\boxed{3}"}, "Q", "3"),
        # a worked solution that marks no answer, and what is neither text nor number
        ({"problem": "Q", "solution": "no box"}, "Q", ""),
        ({"problem": "Q", "answer": ["1"]}, "Q", ""),
        ({"problem": "Q", "answer": float("nan")}, "Q", ""),
        ({"problem": "Q", "reward_model": "rule", "answer": "1"}, "Q", "1"),
        # no question
        ({"problem": None, "answer": "1"}, "", "1"),
        ({"problem": 5, "answer": "1"}, "", "1"),
        ({"problem": " ", "answer": "1"}, "", "1"),
        ({"prompt": [], "answer": "1"}, "", "1"),
        ({"prompt": ["Q"], "answer": "1"}, "", "1"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, "", "1"),
        ({"prompt": [{"role": "user", "content": None}], "answer": "1"}, "", "1"),
        ({"prompt": [{"content": "Q"}], "answer": "1"}, "", "1"),
    ],
)  # fmt: skip
def test_question_and_answer(row: dict[str, Any], question: object, answer: str) -> None:
    assert question_and_answer(row, Columns()) == (question, answer)


def test_columns_of_other_names() -> None:
    row = {"frage": "Q", "antwort": "3", "answer": "no"}
    assert question_and_answer(row, Columns("frage", "antwort")) == ("Q", "3")
    assert question_and_answer({"problem": "Q", "solution": "3"}, Columns(answer="solution")) == ("Q", "3")
    with raises_code("column-not-found", "frage, antwort, answer", "--question-key"):
        question_and_answer(row, Columns())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\{1, \frac{a}{b}\}}", r"\{1, \frac{a}{b}\}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{3", r"\boxed{3"),
        (" 3 ", "3"),
        ("#### -7", "-7"),
    ],
)
def test_the_answer_in_a_solution(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def wanted(path: Path, template: str | None = None) -> DatasetSpec:
    return DatasetSpec(Source(str(path)), template)


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_problem_once_and_none_without_an_answer(tmp_path: Path) -> None:
    rows = [{"problem": f"Q{i % 3}", "answer": "" if i % 3 == 1 else str(i)} for i in range(9)]
    found = read(wanted(jsonl(tmp_path / "rows.jsonl", *rows)))
    assert [problem.answer for problem in found.problems] == ["0", "2"]
    assert (found.repeated, found.without_answer) == (4, 3)
    assert "2 problems, 4 rows repeated left out, 3 rows without an answer left out" in str(found)
    assert len(read(wanted(tmp_path / "rows.jsonl"), limit=1).problems) == 1
    assert len({problem.key for problem in found.problems}) == 2


def test_rows_without_a_question_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"problem": "Q", "answer": "1"}, {"problem": None, "answer": "2"}, {"answer": "3"}, {"problem": "R"}]
    found = read(wanted(jsonl(tmp_path / "rows.jsonl", *rows)))
    assert str(found) == "1 problems, 2 rows without a question left out, 1 rows without an answer left out"
    assert dataset_facts(wanted(tmp_path / "rows.jsonl"), found)["rows_without_question"] == 2
    with raises_code("dataset-without-problems", "--question-key"):
        read(wanted(jsonl(tmp_path / "numbers.jsonl", {"problem": 5, "answer": "1"})))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (None, user_message(f"1{{x}}? {BOXED}\n")),
        ("r1_distill_qwen", user_message(f"1{{x}}? {BOXED}\n")),
        ("qwen_math", (Message("system", BOXED), Message("user", "1{x}?"))),
        ("no", user_message("1{x}?")),
        ("Say: {question}", user_message("Say: 1{x}?")),
    ],
)
def test_templates(tmp_path: Path, template: str | None, prompt: tuple[Message, ...]) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {"problem": "1{x}?", "answer": "2"})
    assert read(wanted(path, template)).problems[0].prompt == prompt


def test_a_template_without_a_question_is_refused() -> None:
    with raises_code("placeholder-missing", "r1_distil'"):
        DatasetSpec(Source("x"), "r1_distil")


def test_prompts_that_the_dataset_has_are_kept_unless_a_template_is_named(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "Q"}], "reward_model": {"ground_truth": "1"}, "data_source": "mine"}
    path = jsonl(tmp_path / "rows.jsonl", row)
    (kept,) = read(wanted(path)).problems
    assert (kept.prompt, kept.source) == (user_message("Q"), "mine")
    assert read(wanted(path, "qwen_math")).problems[0].prompt[0].role == "system"


ROWS = [{"problem": f"Q{i}", "answer": str(i)} for i in range(5)]


def test_every_kind_of_file_and_folder_gives_the_same(tmp_path: Path) -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    places = [jsonl(tmp_path / "a.jsonl", *ROWS), tmp_path / "b.json", tmp_path / "c.parquet"]
    places[1].write_text(json.dumps(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), places[2])

    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one_split")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    (tmp_path / "as_on_the_hub" / "data").mkdir(parents=True)
    parquet.write_table(
        pyarrow.Table.from_pylist(ROWS), tmp_path / "as_on_the_hub" / "data" / "train-00000-of-00001.parquet"
    )
    places += [tmp_path / name for name in ("one_split", "splits", "as_on_the_hub")]
    for place in places:
        found: ReadResult = read(wanted(place))
        assert [(p.prompt[0].content[:2], p.answer) for p in found.problems] == [(f"Q{i}", str(i)) for i in range(5)]


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    jsonl(tmp_path / "train.jsonl", *ROWS)
    with raises_code("dataset-unreadable", "split test", "--split"):
        read(DatasetSpec(Source(str(tmp_path), split="test")))


@pytest.mark.parametrize(
    ("name", "contents", "code", "said"),
    [
        ("rows.csv", "a,b", "dataset-unreadable", ".parquet, .jsonl, .json"),
        ("rows.jsonl", '{"problem": "Q"}\n\n{"problem": "Q', "dataset-unreadable", "rows.jsonl: line 3, column 13"),
        ("rows.jsonl", '{"problem": "Q"}\n5\n', "dataset-unreadable", "line 2"),
        ("rows.json", '{"problem": "Q"}', "dataset-unreadable", "rows.json"),
        ("rows.parquet", "no parquet", "dataset-unreadable", "rows.parquet"),
        ("empty.jsonl", "", "dataset-empty", "empty.jsonl"),
    ],
)
def test_a_file_that_is_no_dataset(tmp_path: Path, name: str, contents: str, code: str, said: str) -> None:
    (tmp_path / name).write_text(contents)
    with raises_code(code, said):
        read(wanted(tmp_path / name))


def test_a_split_of_what_has_none_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file, table, splits = jsonl(tmp_path / "rows.jsonl", *ROWS), tmp_path / "table", tmp_path / "splits"
    datasets.Dataset.from_list(ROWS).save_to_disk(table)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(splits)
    for place in (file, table):
        with raises_code("nothing-to-choose-from", "--config main", "--split test", "--dataset"):
            read(DatasetSpec(Source(str(place), "main", "test")))
        assert Source(str(place)).effective_split is None
    with raises_code("nothing-to-choose-from", "--config main"):
        read(DatasetSpec(Source(str(splits), "main")))
    assert Source(str(splits)).effective_split == "train"


def test_the_cause_is_told_of_files_that_do_not_fit_together(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    jsonl(tmp_path / "train.jsonl", *ROWS)
    jsonl(tmp_path / "test.jsonl", {"other": 1})
    with raises_code("dataset-unreadable", "column names don't match"):
        read(wanted(tmp_path))


@pytest.mark.parametrize("name", ["./nosuch", "/no/such/folder", "no/such/folder", "nosuch.jsonl"])
def test_a_path_is_not_to_be_fetched_from_the_hub(name: str) -> None:
    pytest.importorskip("huggingface_hub")
    with raises_code("dataset-not-found", name) as error:
        read(DatasetSpec(Source(name)))
    assert "hf download" not in str(error.value)


def test_a_missing_dataset_says_what_to_fetch() -> None:
    pytest.importorskip("huggingface_hub")
    with raises_code("dataset-not-found", "hf download nobody/no-such-dataset --repo-type dataset"):
        read(DatasetSpec(Source("nobody/no-such-dataset")))


def test_a_dataset_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache as ``hf download`` leaves it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--some--body"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    jsonl(snapshot / "train.jsonl", *ROWS)
    found = read(DatasetSpec(Source("some/body")))
    assert (len(found.problems), found.revision) == (5, "a" * 40)
