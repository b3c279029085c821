# SPDX-License-Identifier: Apache-2.0
"""Check which files a report may replace, and that a failed write changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.cli import main
from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.comparison.compare import compare
from fp16_patch.lab.comparison.report_directory import DATA, PAGE, PICTURES

pytest.importorskip("matplotlib")


@pytest.fixture
def run(write_run: Callable[..., Path], rises: Any, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "sanity-grpo", {"bf16": rises, "fp16": rises}, {"bf16": 40, "fp16": 40})


def report(run: Path, out: Path | None = None) -> None:
    compare(run, out=out, say=lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("name", [DATA, PAGE, *PICTURES])
def test_foreign_file_is_not_replaced(run: Path, name: str) -> None:
    (run / name).write_text("precious")
    before = contents(run)
    with raises_code("output-in-the-way", f"--out {run}", name, "next step"):
        report(run)
    assert contents(run) == before


@pytest.mark.parametrize("name", [DATA, PAGE])
def test_edited_report_is_not_replaced(run: Path, name: str) -> None:
    report(run)
    (run / name).write_text('{"mine": 1}')
    with raises_code("output-in-the-way", name):
        report(run)


def test_report_replaces_an_earlier_one(run: Path, tmp_path: Path) -> None:
    report(run)
    (run / PAGE).unlink()
    report(run)
    for sources in ([run, f"fp16={run / 'fp16'}"], [f"fp16={run / 'fp16'}"]) * 2:
        compare(*sources, out=tmp_path / "out", recipe="sanity-grpo", say=lambda _: None)
    assert sorted(contents(tmp_path / "out")) == sorted([DATA, PAGE, *(set(PICTURES) - {"offline.png"})])
    assert not list((tmp_path / "out").glob(".*")), "nothing is left aside"


def test_failed_write_leaves_the_earlier_report_whole(run: Path, room_for: Any) -> None:
    report(run)
    before = contents(run)
    with room_for(20_000), raises_code("write-failed", f"--out {run}: "):
        report(run)
    assert contents(run) == before
    assert not list(run.glob(".report*"))


@pytest.mark.parametrize("place", ["file", "file/below", "/dev/full", "/proc/foo"])
def test_unwritable_out_is_one_error(run: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Fp16PatchError) as refused:
        report(run, tmp_path / place)
    assert refused.value.code in ("output-in-the-way", "write-failed")
    assert place.partition("/below")[0] in refused.value.what
    assert refused.value.next_step
    assert (tmp_path / "file").read_text() == "mine"


def test_run_checks_report_files_before_it_starts(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / PAGE).write_text("precious")
    assert main(["recipes", "run", "quickstart", "--out", str(tmp_path)]) != 0
    assert f"--out {tmp_path} holds {PAGE}" in capsys.readouterr().err
    assert list(contents(tmp_path)) == [PAGE]
