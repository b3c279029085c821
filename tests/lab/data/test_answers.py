# SPDX-License-Identifier: Apache-2.0
"""What was sampled is kept: through a kill, and from other settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.lab.data.sample_store import Sampled, SampleStore

FIRST = Sampled("a", ("1", "línea\n2"), (3, 4), 0)
SECOND = Sampled("b", ("", "x"), (0, 8), 1)
SETTINGS = {"model": "m", "samples": 2}


@pytest.fixture
def answers(tmp_path: Path) -> SampleStore:
    answers = SampleStore(tmp_path / "sampling")
    answers.begin(SETTINGS)
    answers.append([FIRST, SECOND])
    return answers


def test_what_is_written_is_read(answers: SampleStore) -> None:
    assert list(answers) == [FIRST, SECOND]
    answers.begin(SETTINGS)
    answers.append([SECOND])
    assert list(answers) == [FIRST, SECOND, SECOND]


@pytest.mark.parametrize("torn", range(1, 40, 7))
def test_half_a_line_is_dropped(answers: SampleStore, torn: int) -> None:
    whole = answers.file.read_bytes()
    answers.file.write_bytes(whole[:-torn])
    answers.begin(SETTINGS)
    assert list(answers) == [FIRST]
    answers.append([SECOND])
    assert answers.file.read_bytes() == whole


def test_half_a_line_and_nothing_else(answers: SampleStore) -> None:
    answers.file.write_text('{"key')
    answers.begin(SETTINGS)
    assert list(answers) == []


def test_other_settings_are_refused_by_name_and_nothing_is_lost(answers: SampleStore) -> None:
    before = answers.file.read_bytes()
    with raises_code("answers-of-other-settings", "model: 'm'", "'other'", "dtype: None", "'float16'") as error:
        answers.begin({"model": "other", "samples": 2, "dtype": "float16"})
    assert "samples" not in str(error.value)
    assert answers.file.read_bytes() == before


@pytest.mark.parametrize("left", [None, "", '{"key": "half a li'])
def test_an_attempt_that_sampled_nothing_leaves_the_settings_free(tmp_path: Path, left: str | None) -> None:
    answers = SampleStore(tmp_path)
    answers.begin({"model": "m", "max_tokens": 8192})
    if left is not None:
        answers.file.write_text(left)
    answers.begin({"model": "m", "max_tokens": 24})
    answers.append([FIRST])
    answers.begin({"model": "m", "max_tokens": 24})
    with raises_code("answers-of-other-settings", "max_tokens: 24", "8192"):
        answers.begin({"model": "m", "max_tokens": 8192})


def test_what_vllm_ran_with_is_told_of_the_answers_and_not_of_the_last_attempt(tmp_path: Path) -> None:
    answers = SampleStore(tmp_path)
    answers.begin(SETTINGS)
    for options in ({"enforce_eager": True}, {"enforce_eager": True}, {}):
        answers.record_options(options)
        answers.append([FIRST])
    answers.begin(SETTINGS)
    assert answers.recorded_options() == [{"enforce_eager": True}, {}]


@pytest.mark.parametrize("stamp", [None, "{", "[]"])
def test_answers_without_their_settings_are_refused(answers: SampleStore, stamp: str | None) -> None:
    answers.settings_file.unlink() if stamp is None else answers.settings_file.write_text(stamp)
    with raises_code("answers-of-unknown-settings", answers.settings_file):
        answers.begin(SETTINGS)
    assert list(answers) == [FIRST, SECOND]


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}'])
def test_a_broken_line_is_named(answers: SampleStore, line: str) -> None:
    answers.file.write_text(f"{line}\n{answers.file.read_text()}")
    with raises_code("file-damaged", "line 1"):
        list(answers)
