# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up is one error, and what stood there before still does. A limit on files stands in for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.lab.data.convert import convert
from fp16_patch.lab.data.output import Output
from fp16_patch.lab.data.reading import DatasetSpec
from fp16_patch.lab.data.sample_store import Sampled, SampleStore
from fp16_patch.lab.data.source import Source
from fp16_patch.lab.folder_lock import exclusive_lock

pytest.importorskip("pyarrow")

RoomFor = Callable[[int], AbstractContextManager[None]]


def test_the_lock(tmp_path: Path, room_for: RoomFor) -> None:
    with raises_code("write-failed", f"--out {tmp_path}: ", "next step"), room_for(0), exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):
        pass


def test_the_files(tmp_path: Path, room_for: RoomFor) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem": "Q", "answer": "1"}))
    wanted, output = DatasetSpec(Source(str(rows))), Output(tmp_path / "out")
    convert(wanted, output, say=lambda _: None)
    before = {path.name: path.read_bytes() for path in output.folder.iterdir()}
    with raises_code("write-failed", "next step"), room_for(100):
        convert(wanted, output, say=lambda _: None)
    assert {path.name: path.read_bytes() for path in output.folder.iterdir()} == before


def test_the_settings_and_the_answers(tmp_path: Path, room_for: RoomFor) -> None:
    answers = SampleStore(tmp_path / "sampling")
    with raises_code("write-failed", "settings.json: ", "next step"), room_for(10):
        answers.begin({"model": "m"})
    answers.begin({"model": "m"})
    first = Sampled("a", ("1",), (1,), 0)
    answers.append([first])
    room = answers.file.stat().st_size + 5
    with raises_code("write-failed", "next step"), room_for(room):
        answers.append([first])
    answers.begin({"model": "m"})
    assert list(answers) == [first]


def test_a_name_that_no_disk_takes(tmp_path: Path) -> None:
    with raises_code("write-failed"):
        Output(tmp_path, "x" * 300).check({})
