# SPDX-License-Identifier: Apache-2.0
"""Check the report of complete, partial and broken runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparison_runs import write_arm
from raising import raises_code

from fp16_patch.lab.comparison.compare import compare

matplotlib = pytest.importorskip("matplotlib")

Write = Callable[..., Path]
PLOTS = ("figure", "overview", "prob_diff", "kl", "pi_minus_mu", "loss_scale")


@pytest.fixture
def run(write_recipe: Write, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(write_recipe(), folder / "recipe.yaml")
    write_arm(folder / "bf16", "bf16", 8.8e-5)
    write_arm(folder / "fp16", "fp16", 1.1e-5)
    return folder


def report_of(folder: Path) -> tuple[dict[str, Any], str]:
    said: list[str] = []
    compare(folder, say=said.append)
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in PLOTS)
    assert (folder / "report.html").read_text().endswith("</html>\n")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report, "\n".join(said)


def test_complete_run(run: Path) -> None:
    report, said = report_of(run)
    head = report["headline"]
    assert head["prob_diff_ratio"] == pytest.approx(8)
    assert head["k3_kl_ratio"] == pytest.approx(64)
    assert head["steps_compared"] == 8
    assert head["reward"]["fp16"] == pytest.approx({"first3": 0.1, "last3": 0.6, "rise": 0.5})
    assert head["skipped_updates"] == {"bf16": None, "fp16": 1}
    assert report["arms"]["fp16"]["series"]["step"] == list(range(1, 9))
    assert report["arms"]["bf16"]["series"]["loss_scale"] == [None] * 8
    assert report["versions"] == {"python": "3", "verl": "0.9.1"}
    assert report["expected"][0]["met"] is True
    assert report["notes"] == []
    assert "met      headline.prob_diff_ratio >= 6   found 8" in said
    assert str(run / "report.html") in said


def test_page_is_self_contained(run: Path) -> None:
    report_of(run)
    page = (run / "report.html").read_text()
    assert not re.search(r"<script|https?://|src='(?!data:)", page)
    assert page.count("data:image/png;base64,") == 5
    assert "<tr class=differs><td>compute</td><td>bfloat16</td><td>float16</td></tr>" in page
    assert "<td>trainer rank 0</td><td>2 applied</td><td>2 applied</td>" in page


def test_missed_bound_is_reported(run: Path) -> None:
    shutil.rmtree(run / "fp16")
    write_arm(run / "fp16", "fp16", 4.4e-5)
    report, said = report_of(run)
    assert report["expected"][0]["met"] is False
    assert "NOT MET  headline.prob_diff_ratio" in said


def test_compares_common_steps_only(run: Path) -> None:
    shutil.rmtree(run / "bf16")
    write_arm(run / "bf16", "bf16", 8.8e-5, steps=2)
    grown = [1.1e-5, 1.1e-5] + [1.0] * 6
    shutil.rmtree(run / "fp16")
    write_arm(run / "fp16", "fp16", 1.1e-5, mismatch__prob_diff_mean=grown)
    head = report_of(run)[0]["headline"]
    assert head["prob_diff_ratio"] == pytest.approx(8)
    assert head["steps_compared"] == 2


def test_failed_arm_shows_its_error(run: Path) -> None:
    result = json.loads((run / "bf16" / "result.json").read_text())
    (run / "bf16" / "result.json").write_text(json.dumps(result | {"status": "failed", "error": "<b> & exit code 1"}))
    with (run / "bf16" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "data": {"critic')
    (run / "bf16" / "precision_report.json").write_text("{")
    report, said = report_of(run)
    assert report["notes"] == [
        "bf16 failed after 8 steps",
        "bf16 has unreadable lines in metrics.jsonl: 1",
        "bf16 left no readable precision report",
    ]
    assert (report["expected"][0]["value"], report["expected"][0]["met"]) == (pytest.approx(8), None)
    assert "unknown  headline.prob_diff_ratio >= 6   found 8" in said, "what a whole run would have come to"
    assert "&lt;b&gt; &amp; exit code 1" in (run / "report.html").read_text()
    assert str(run / "bf16" / "train.log") in said


def test_result_with_nan_is_unreadable(run: Path) -> None:
    result = (run / "fp16" / "result.json").read_text()
    (run / "fp16" / "result.json").write_text(re.sub(r'"seconds": [\d.]+', '"seconds": NaN', result))
    (run / "bf16" / "metrics.jsonl").unlink()
    (run / "bf16" / "metrics.jsonl").mkdir()
    report, _ = report_of(run)
    assert "fp16 has a result.json that cannot be read after 8 steps" in report["notes"]
    assert "bf16 has unreadable lines in metrics.jsonl: 1" in report["notes"]


def test_counts_skipped_updates_of_the_last_step(run: Path) -> None:
    """That step logs no metrics. A step of several updates logs the share of those skipped, which is no count."""
    shutil.rmtree(run / "fp16")
    totals = {"actor__update_skipped": [0.5] * 4, "actor__updates_skipped_total/max": [2.0, 4.0, 6.0, 8.0]}
    write_arm(run / "fp16", "fp16", 1.1e-5, steps=4, **totals)
    result = json.loads((run / "fp16" / "result.json").read_text())
    (run / "fp16" / "result.json").write_text(json.dumps(result | {"status": "failed"}))
    report, _ = report_of(run)
    assert report["arms"]["fp16"]["skipped_updates"] == 8
    assert "fp16 counts the skipped updates of these steps only" in report["notes"]
    (run / "fp16" / "overflow_report_actor.json").write_text(json.dumps({"counts": {"updates": 20, "skipped": 12}}))
    report, _ = report_of(run)
    assert report["arms"]["fp16"]["skipped_updates"] == 12
    assert report["notes"] == ["fp16 failed after 4 steps"]


@pytest.mark.parametrize("missing", ["bf16", "fp16"])
def test_missing_arm_leaves_ratios_empty(run: Path, missing: str) -> None:
    shutil.rmtree(run / missing)
    report, said = report_of(run)
    assert report["headline"]["prob_diff_ratio"] is None
    assert report["expected"][0]["met"] is None
    assert report["notes"] == [f"{missing} has not been run"]
    assert "no data" in said


def test_reports_without_arms_and_steps(run: Path) -> None:
    shutil.rmtree(run / "bf16")
    (run / "fp16" / "metrics.jsonl").write_text("")
    report, _ = report_of(run)
    assert "fp16 logged no training step" in report["notes"]
    assert report["headline"]["reward"]["fp16"] == {"first3": None, "last3": None, "rise": None}


def test_nan_zero_and_negative_values(run: Path) -> None:
    shutil.rmtree(run / "fp16")
    write_arm(
        run / "fp16",
        "fp16",
        1.1e-5,
        mismatch__k3_kl=[None, math.nan, math.inf, 0.0, -1e-12, 1e-10, 1e-10, 1e-10],
        actor__grad_norm=[None] * 8,
    )
    report, _ = report_of(run)
    assert report["arms"]["fp16"]["series"]["k3_kl"][:3] == [None, None, None]
    assert report["arms"]["fp16"]["mean"]["grad_norm"] is None
    assert report["headline"]["k3_kl_ratio"] == pytest.approx(8.8e-5**2 / ((3e-10 - 1e-12) / 5))


def test_nan_from_the_first_step_is_a_collapse(run: Path) -> None:
    shutil.rmtree(run / "bf16")
    nothing: list[float | None] = [None] * 8
    write_arm(run / "bf16", "bf16", 0.0, critic__score__mean=nothing, actor__grad_norm=nothing)
    report, said = report_of(run)
    assert report["arms"]["bf16"]["collapse"]["step"] == 1
    assert "begins at step 1" in said


@pytest.fixture
def openrlhf_run(run: Path, write_recipe: Write, openrlhf: str, tmp_path: Path) -> Path:
    """The same run as OpenRLHF logs it, a quarter as far off in BF16."""
    folder = tmp_path / "run-openrlhf"
    folder.mkdir()
    shutil.copy(write_recipe(("verl:", f"{openrlhf}verl:")), folder / "recipe.yaml")
    write_arm(folder / "bf16", "bf16", 2.2e-5)
    write_arm(folder / "fp16", "fp16", 1.1e-5)
    for arm in ("bf16", "fp16"):
        metrics = folder / arm / "metrics.jsonl"
        text = metrics.read_text()
        for verls, other in {
            "critic/score/mean": "rollout/reward_mean",
            "timing_s/step": "timing/step_total",
            "actor/grad_norm": "actor_grad_norm",
        }.items():
            text = text.replace(verls, other)
        metrics.write_text(text)
        result = json.loads((folder / arm / "result.json").read_text())
        (folder / arm / "result.json").write_text(json.dumps(result | {"framework": "openrlhf"}))
    return folder


def test_openrlhf_run_reports_the_same(openrlhf_run: Path) -> None:
    report, _ = report_of(openrlhf_run)
    assert report["recipe"]["framework"] == "openrlhf"
    assert report["headline"]["prob_diff_ratio"] == pytest.approx(2)
    assert report["headline"]["reward"]["fp16"] == pytest.approx({"first3": 0.1, "last3": 0.6, "rise": 0.5})
    assert report["arms"]["fp16"]["seconds_per_step"] == 2.0
    assert report["arms"]["fp16"]["mean"]["grad_norm"] == 1.0
    assert report["notes"] == []


def test_one_report_over_two_frameworks(run: Path, openrlhf_run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "runs" / "both"
    compare(run, openrlhf_run, out=out, say=said.append)
    report = json.loads((out / "report.json").read_text())
    assert list(report["runs"]) == ["verl", "openrlhf"]
    assert report["runs"]["verl"] == report_of(run)[0]
    assert report["runs"]["openrlhf"]["expected"][0]["met"] is False
    assert {path.stem for path in out.glob("*.png")} == set(PLOTS)
    page = (out / "report.html").read_text()
    heads = "".join(f"<th>{arm}</th>" for arm in ("verl bf16", "verl fp16", "openrlhf bf16", "openrlhf fp16"))
    assert f"<tr><th></th>{heads}</tr>" in page
    assert page.index("<b>8.0&times;</b>") < page.index("<b>2.0&times;</b>")
    assert str(out / "report.html") in "\n".join(said)


def test_line_style_by_run_and_colour_by_precision(run: Path, openrlhf_run: Path) -> None:
    from fp16_patch.lab.comparison.figure_style import build_curves
    from fp16_patch.lab.comparison.inputs import read_inputs
    from fp16_patch.lab.comparison.model import build_comparison

    curves = build_curves(build_comparison(read_inputs([str(run), str(openrlhf_run)])))
    looks = {curve.label: (curve.colour, curve.line) for curve in curves}
    assert len(set(looks.values())) == 4
    assert looks["verl fp16"][0] == looks["openrlhf fp16"][0]
    assert looks["verl fp16"][1] == looks["verl bf16"][1]


def test_labels_are_folders_on_one_framework(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    report = compare(run, tmp_path / "again", out=tmp_path / "both", say=lambda _: None)
    assert list(report["runs"]) == ["run", "again"]


def test_several_runs_need_out(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    with raises_code("out-missing", "--out"):
        compare(run, tmp_path / "again")
    with raises_code("run-given-twice", run):
        compare(run, run, out=tmp_path / "both")


def test_refuses_folder_without_run(tmp_path: Path) -> None:
    with raises_code("not-a-run-directory", tmp_path, "recipes run"):
        compare(tmp_path)


def test_report_over_several_runs_keeps_out_of_a_run_directory(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    compare(run, say=lambda _: None)
    before = (run / "report.json").read_text()
    for folders in ((run, other), (other,)):
        with raises_code("output-in-the-way", run):
            compare(*folders, out=run, say=lambda _: None)
    assert (run / "report.json").read_text() == before


def test_ticks_of_one_decade_are_distinct() -> None:
    from fp16_patch.lab.comparison.figures import _scientific

    assert [_scientific(value) for value in (1e-4, 2e-4, 2.2e-4, 2.25e-4)] == ["1e-04", "2e-04", "2.2e-04", "2.25e-04"]
