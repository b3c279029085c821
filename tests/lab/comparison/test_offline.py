# SPDX-License-Identifier: Apache-2.0
"""Check the offline measurement of runs that saved log-probs: numbers, comparison with the paper, figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.lab.comparison.compare import compare
from fp16_patch.lab.comparison.expectations import check_expectation
from fp16_patch.lab.comparison.inputs import read_inputs
from fp16_patch.lab.comparison.model import build_comparison
from fp16_patch.lab.comparison.report_directory import PICTURES
from fp16_patch.lab.recipes.schema import Expectation
from fp16_patch.mismatch.log_prob_store import FOLDER, save

torch = pytest.importorskip("torch")
matplotlib = pytest.importorskip("matplotlib")

DRIFT = {"bf16": -1e-3, "fp16": -7e-5, "fp32": 0.0}
"""log pi - log mu of every token, in nats."""


def unlearnt(_step: int) -> float:
    return 0.3


@pytest.fixture
def run(write_run: Callable[..., Path], tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", "figure-5-offline", dict.fromkeys(DRIFT, unlearnt), dict.fromkeys(DRIFT, 1))
    lengths = torch.tensor([1000, 2000, 3000])
    mask = torch.arange(3000) < lengths[:, None]
    mu = torch.full((3, 3000), -0.5)
    for arm, drift in DRIFT.items():
        save(folder / arm / FOLDER, mu, mu + drift, mask)
    return folder


def compared(folder: Path) -> dict[str, Any]:
    compare(folder, say=[].append)
    return json.loads((folder / "report.json").read_text())


def test_slope_and_kl_of_every_arm(run: Path) -> None:
    report = compared(run)
    for arm, drift in DRIFT.items():
        found = report["arms"][arm]["offline"]
        assert found["slope_per_1000_tokens"] == pytest.approx(1000 * drift, rel=1e-3, abs=1e-6), arm
        assert found["sequence_kl"] == pytest.approx(-2000 * drift, rel=1e-3, abs=1e-6), arm
        assert (found["answers"], found["tokens"]) == (3, 6000)


def test_compares_with_the_paper(run: Path) -> None:
    rows = {(row["arm"], row["what"]): row for row in compared(run)["published"]}
    slope = rows["fp16", "slope of the log-ratio, nats per 1,000 tokens"]
    assert slope["published"] == -0.07
    assert slope["own"] == pytest.approx(-0.07, rel=1e-3)
    assert slope["verdict"] == "within"
    kl = rows["bf16", "KL of whole answers, nats"]
    assert kl["published"] == 7.64
    assert kl["own"] == pytest.approx(2, rel=1e-3)
    assert kl["verdict"] == "below"


def test_figure_is_drawn_and_shown(run: Path) -> None:
    compared(run)
    assert "-0.07 ±" in (run / "report.html").read_text()
    assert (run / "offline.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in run.glob("*.png")} == set(PICTURES), "all are known when a folder is looked at"
    assert "Answers and their tokens" in (run / "report.html").read_text()


def test_answers_that_are_not_finite_are_left_out_and_counted(run: Path) -> None:
    nan = torch.tensor([[-0.5, float("nan")], [-0.5, -0.5]])
    save(run / "fp16" / FOLDER, nan, nan - 7e-5, torch.ones(2, 2))
    for file in (run / "fp32" / FOLDER).iterdir():
        file.unlink()
    save(run / "fp32" / FOLDER, nan[:1], nan[:1], torch.ones(1, 2))
    report = compared(run)
    found = {arm: report["arms"][arm]["offline"] for arm in DRIFT}
    assert [found[arm]["non_finite_answers"] for arm in DRIFT] == [0, 1, 1]
    assert [found[arm]["answers"] for arm in DRIFT] == [3, 4, 0]
    assert found["fp16"]["slope_per_1000_tokens"] == pytest.approx(-0.07, rel=1e-3)
    assert found["fp32"]["sequence_kl"] is None
    rows = {(row["arm"], row["what"]): row for row in report["published"]}
    slope = rows["fp16", "slope of the log-ratio, nats per 1,000 tokens"]
    assert (slope["verdict"], slope["why"]) == ("not finite", "slope_per_1000_tokens not finite in 1 of 5 answers")
    page = (run / "report.html").read_text()
    assert "<td>answers left out, not finite</td><td>0</td><td>1</td><td>1</td>" in page


def test_expectation_on_a_measurement_that_leaves_out_answers_is_not_met(run: Path) -> None:
    save(run / "fp16" / FOLDER, torch.tensor([[float("nan")]]), torch.zeros(1, 1), torch.ones(1, 1))
    comparison = build_comparison(read_inputs([str(run)]))
    for arm, met, why in (("fp16", False, "1 answers not finite, left out"), ("bf16", True, "")):
        expectation = Expectation(f"arms.{arm}.offline.sequence_kl", "invented", at_most=9)
        found = check_expectation(expectation, comparison.reports[""], comparison.runs[0].arms)
        assert (found.met, found.why) == (met, why)


def test_omits_arm_without_log_probs(run: Path) -> None:
    for file in (run / "fp32" / FOLDER).iterdir():
        file.unlink()
    report = compared(run)
    assert report["arms"]["fp32"]["offline"] is None
    assert report["arms"]["bf16"]["offline"] is not None
    assert (run / "offline.png").exists()


def test_no_figure_without_log_probs(write_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "figure-5-offline", {"bf16": unlearnt}, {"bf16": 1})
    assert compared(folder)["arms"]["bf16"]["offline"] is None
    assert not (folder / "offline.png").exists()
