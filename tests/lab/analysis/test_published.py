# SPDX-License-Identifier: Apache-2.0
"""Compare an arm's numbers with the published ones, only if they are comparable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.lab.analysis.published import series_name
from fp16_patch.lab.comparison.compare import compare
from fp16_patch.lab.comparison.inputs import read_inputs
from fp16_patch.lab.comparison.model import build_comparison
from fp16_patch.lab.loading.load import available, load

pytest.importorskip("matplotlib")

Write = Callable[..., Path]


def rows(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    report = compare(run, say=lambda _: None)
    return {(row["arm"], row["what"]): row for row in report["published"]}


@pytest.mark.parametrize("path", available(), ids=lambda path: path.stem)
def test_every_published_number_has_a_series(path: Path) -> None:
    unknown = [n.what for numbers in load(path).published.values() for n in numbers if series_name(n.what) is None]
    assert unknown == []


@pytest.fixture
def run(write_run: Write, rises: Any, collapses: Any, tmp_path: Path) -> Path:
    rewards = {"bf16": collapses, "fp16": rises}
    return write_run(tmp_path / "run", "sanity-grpo", rewards, {"bf16": 610, "fp16": 2100})


def test_compares_at_peak_or_step_within_tolerance(run: Path) -> None:
    """The curves peak below 0.7 and stand near 0.98 at step 2040."""
    found = rows(run)
    end = found["fp16", "training reward at the end"]
    assert (end["verdict"], end["own_step"], end["published_step"]) == ("within", 2040, 2040)
    assert end["own"] == pytest.approx(0.98, abs=0.01)
    peak = found["bf16", "peak training reward"]
    assert peak["own_step"] == pytest.approx(370, abs=30)
    assert peak["verdict"] == "below"
    assert peak["why"] == f"by {0.73 - peak['own']:.3g}"
    assert found["fp16", "AIME24 score at the end"]["own_step"] == 2100
    page = (run / "report.html").read_text()
    assert "<td>0.98 ±0.01 at step 2040</td>" in page
    collapse = json.loads((run / "report.json").read_text())["arms"]["bf16"]["collapse"]
    assert collapse["step"] == pytest.approx(390, abs=40)
    assert f"begins at step {collapse['step']}" in page


def test_short_run_has_not_reached_the_step(write_run: Write, rises: Any, collapses: Any, tmp_path: Path) -> None:
    short = write_run(tmp_path / "run", "sanity-grpo", {"bf16": collapses, "fp16": rises}, {"bf16": 610, "fp16": 500})
    (short / "fp16" / "result.json").unlink()
    found = rows(short)
    end = found["fp16", "training reward at the end"]
    assert (end["verdict"], end["why"]) == ("not reached", "the run has 500 steps, the number is of 2040")
    score = found["fp16", "AIME24 score at the end"]
    assert (score["verdict"], score["why"]) == ("unknown", "the run has not ended: unfinished")


def test_toy_run_is_not_comparable(write_run: Write, rises: Any, tmp_path: Path) -> None:
    toy = write_run(
        tmp_path / "toy",
        "sanity-grpo",
        {"bf16": rises, "fp16": rises},
        dict.fromkeys(("bf16", "fp16"), 2100),
        scale="toy",
    )
    found = rows(toy)
    assert len(found) == 5
    assert {(row["own"], row["verdict"], row["why"]) for row in found.values()} == {
        (None, "not comparable", "toy scale")
    }


def test_run_with_other_settings_is_not_comparable(write_run: Write, rises: Any, tmp_path: Path) -> None:
    smaller = write_run(
        tmp_path / "run",
        "sanity-grpo",
        {"fp16": rises},
        {"fp16": 2100},
        overrides=("data.train_batch_size=8", "data.seed=1"),
    )
    end = rows(smaller)["fp16", "training reward at the end"]
    assert (end["verdict"], end["why"]) == ("not comparable", "not as the recipe: data.train_batch_size: 64 and 8")
    assert end["own"] == pytest.approx(0.98, abs=0.01)


@pytest.mark.parametrize("bad", [{20}, set(range(1, 2101))], ids=["one step", "all"])
def test_a_reward_that_is_not_finite_is_not_within(run: Path, bad: set[int]) -> None:
    metrics = run / "fp16" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        if line["step"] in bad:
            line["data"]["critic/score/mean"] = None
    metrics.write_text("\n".join(map(json.dumps, lines)) + "\n")
    published = build_comparison(read_inputs([str(run)])).reports[""].published
    end = next(row for row in published if (row.arm, row.what) == ("fp16", "training reward at the end"))
    assert (end.verdict, end.why) == ("not finite", f"reward not finite in {len(bad)} of 2100 steps")


def test_several_evaluations_are_ambiguous(run: Path) -> None:
    metrics = run / "fp16" / "metrics.jsonl"
    other = json.dumps({"step": 50, "data": {"val-core/aime_2025/acc/mean@32": 0.1}})
    metrics.write_text(metrics.read_text() + other + "\n")
    report = compare(run, say=lambda _: None)
    row = next(row for row in report["published"] if row["what"] == "AIME24 score at the end")
    assert (row["verdict"], row["own"]) == ("no data", None)
    assert set(report["arms"]["fp16"]["evaluation"]) == {f"val-core/aime_{year}/acc/mean@32" for year in (2024, 2025)}


def test_figure_draws_comparable_published_numbers(run: Path, monkeypatch: Any) -> None:
    """Two rewards of BF16 and one of FP16 have a step; both scores have none."""
    from matplotlib.axes import Axes

    drawn: list[tuple[str, float]] = []

    def watched(name: str, at: int) -> Callable[..., Any]:
        original = getattr(Axes, name)

        def draw(axes: Axes, *values: float, **look: Any) -> Any:
            drawn.append((name, round(values[at], 3)))
            return original(axes, *values, **look)

        return draw

    for name, at in (("errorbar", 1), ("axhspan", 0)):
        monkeypatch.setattr(Axes, name, watched(name, at))
    compare(run, say=lambda _: None)
    rewards = [("errorbar", 0.6), ("errorbar", 0.73), ("errorbar", 0.98)]
    assert sorted(drawn) == [("axhspan", 0.275), ("axhspan", 0.347), *rewards]
