# SPDX-License-Identifier: Apache-2.0
"""A report says where a metric is not finite: it is neither absent nor the mean of the other steps."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparison_runs import write_arm

from fp16_patch.lab.comparison.compare import compare
from fp16_patch.lab.comparison.expectations import check_expectation
from fp16_patch.lab.comparison.inputs import read_inputs
from fp16_patch.lab.comparison.model import Comparison, build_comparison
from fp16_patch.lab.comparison.terminal import show_found

matplotlib = pytest.importorskip("matplotlib")

NAN = math.nan
SIZE = 1e-3
SOME, ALL = [SIZE, NAN, SIZE, NAN, SIZE], [NAN] * 5
TWO, FIVE = "not finite in 2 of 5 steps", "not finite in 5 of 5 steps"
Write = Callable[..., Path]


@pytest.fixture
def write_pair(write_recipe: Write, tmp_path: Path) -> Write:
    """A run of five steps whose BF16 arm logs these metrics."""

    def write(metric: str = "headline.prob_diff_ratio", name: str = "run", **changed: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(write_recipe(("headline.prob_diff_ratio", metric)), folder / "recipe.yaml")
        write_arm(folder / "bf16", "bf16", 8 * SIZE, steps=5, **changed)
        write_arm(folder / "fp16", "fp16", SIZE, steps=5)
        return folder

    return write


def model_of(*folders: Path) -> Comparison:
    return build_comparison(read_inputs([str(folder) for folder in folders]))


def compared(folder: Path) -> tuple[dict[str, Any], str]:
    said: list[str] = []
    compare(folder, say=said.append)
    return json.loads((folder / "report.json").read_text()), "\n".join(said)


def test_a_mean_says_how_many_steps_it_leaves_out(write_pair: Write) -> None:
    folder = write_pair(mismatch__prob_diff_mean=SOME, mismatch__k3_kl=ALL)
    report, said = compared(folder)
    arm = report["arms"]["bf16"]
    assert arm["non_finite"]["prob_diff_mean"] == {"steps": [2, 4], "logged": 5}
    assert (arm["mean"]["prob_diff_mean"], arm["mean"]["k3_kl"]) == (pytest.approx(SIZE), None)
    assert report["notes"] == [
        "bf16 logged numbers that are not finite: prob_diff_mean in 2 of 5 steps, k3_kl in 5 of 5 steps; "
        "means and ratios leave these steps out"
    ]
    assert report["headline"]["how"].endswith("not finite: prob_diff_mean in 2 steps, k3_kl in 5 steps")
    assert report["arms"]["fp16"]["non_finite"] == {}
    for cell in (f"1.00e-03, {TWO}", f"-, {FIVE}"):
        assert cell in said
    page = (folder / "report.html").read_text()
    for cell in (f"<td>1.000e-03, {TWO}</td>", f"<td>-, {FIVE}</td>"):
        assert cell in page


def test_both_arms_are_compared_at_steps_finite_in_both(write_pair: Write) -> None:
    folder = write_pair(mismatch__prob_diff_mean=[8 * SIZE, NAN, 8 * SIZE, NAN, 8 * SIZE])
    shutil.rmtree(folder / "fp16")
    write_arm(folder / "fp16", "fp16", SIZE, steps=5, mismatch__prob_diff_mean=[SIZE, 1.0, SIZE, 1.0, SIZE])
    assert model_of(folder).reports[""].headline.prob_diff_ratio == pytest.approx(8)


@pytest.mark.parametrize(
    ("metric", "changed", "why"),
    [
        ("headline.prob_diff_ratio", {"mismatch__prob_diff_mean": SOME}, f"bf16 prob_diff_mean {TWO}"),
        ("headline.k3_kl_ratio", {"mismatch__k3_kl": [None] * 5}, f"bf16 k3_kl {FIVE}"),
        ("arms.bf16.mean.k3_kl", {"mismatch__k3_kl": SOME}, f"bf16 k3_kl {TWO}"),
        ("arms.fp16.mean.k3_kl", {"mismatch__k3_kl": SOME}, ""),
        ("headline.reward.bf16.last3", {"critic__score__mean": [9.0, NAN, 9, NAN, 9]}, f"bf16 reward {TWO}"),
        ("to_reward.ratio.steps", {"critic__score__mean": [9.0, NAN, 9, NAN, 9]}, f"bf16 reward {TWO}"),
    ],
)
def test_an_expectation_that_is_not_finite_is_not_met(
    write_pair: Write, metric: str, changed: dict[str, Any], why: str
) -> None:
    comparison = model_of(write_pair(metric, **changed))
    run = comparison.runs[0]
    checked = check_expectation(run.recipe.expected[0], comparison.reports[""], run.arms)
    assert checked.why == why
    if why:
        assert (checked.met, checked.verdict) == (False, "NOT MET")
        assert show_found(checked).endswith(f"; {why}")


def test_an_expectation_on_an_absent_metric_has_no_data(write_pair: Write) -> None:
    folder = write_pair()
    lines = (folder / "bf16" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["data"] = {key: value for key, value in row["data"].items() if not key.startswith("mismatch/")}
    (folder / "bf16" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    report, _ = compared(folder)
    assert (report["expected"][0]["verdict"], report["expected"][0]["why"]) == ("no data", "")
    assert report["notes"] == ["bf16 logged no mismatch metrics"]


def test_collapse_warns_of_single_steps_and_finds_a_lasting_reward(write_pair: Write) -> None:
    folder = write_pair(mismatch__prob_diff_mean=SOME, critic__score__mean=[0.5, NAN, NAN, NAN, 0.5])
    found = model_of(folder).reports[""].arms["bf16"].collapse
    assert (found.found, found.step, found.how) == (True, 2, ["the reward is not finite from step 2 on"])
    assert f"the mean abs(pi - mu) is {TWO}, first at step 2" in found.warnings


def test_health_rows_show_what_is_above_zero(write_pair: Write) -> None:
    folder = write_pair(
        rollout__non_finite_answers=[0.0, 4, 2, 0, 1],
        rollout__masked_answers=[0.0, 4, 2, 0, 1],
        rollout__non_finite_tokens=[0.0, 900_000, 600_000, 0, 7],
        rollout__changed_sampling=[0.0] * 5,
        trainer__non_finite_tokens=[0.0] * 5,
        actor__loss_not_finite=[0.0, 0.25, 0, 0.5, 0],
        critic__loss_not_finite=[0.0, 0.25, 0, 0, 0],
        **{"actor__losses_not_finite_total/max": [0.0, 1, 1, 3, 3]},
    )
    report, said = compared(folder)
    health = report["arms"]["bf16"]["health"]
    assert health["rollout_non_finite_answers"] == {"total": 7, "steps": 3}
    assert health["loss_not_finite"] == {"total": 3, "steps": 2}, "a step logs the share of its updates"
    assert health["critic_loss_not_finite"] == {"total": None, "steps": 1}
    assert "rollout_changed_sampling" not in health
    assert report["arms"]["fp16"]["health"] == {}
    rows = [line.split("  ") for line in said.splitlines() if "rollout: " in line or "loss not finite" in line]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["rollout: answers not finite", "7 in 3 steps", "-"],
        ["rollout: tokens not finite", "1500007 in 3 steps", "-"],
        ["rollout: answers masked", "7 in 3 steps", "-"],
        ["actor: updates with a loss not finite", "3 in 2 steps", "-"],
        ["critic: updates with a loss not finite", "in 1 step", "-"],
    ]
    assert "<td>rollout: answers not finite</td><td>7 in 3 steps</td><td>-</td>" in (folder / "report.html").read_text()


def test_figures_mark_the_steps_and_say_how_many(write_pair: Write) -> None:
    from fp16_patch.lab.comparison.figure_style import build_curves, finish, mark_non_finite, new_figure

    curves = build_curves(model_of(write_pair(mismatch__k3_kl=ALL)))
    axes = new_figure((3, 3)).add_subplot()
    assert mark_non_finite(axes, curves, "k3_kl") == [f"bf16: {FIVE} (x)"]
    assert mark_non_finite(axes, curves, "prob_diff_mean") == []
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2, 3, 4, 5]]
    finish(axes, "title", "y", not_finite=["as above"])
    assert (axes.get_xlabel(), list(axes.texts)) == ("training step\nas above", [])


def test_a_panel_without_a_finite_value_does_not_say_nothing_was_logged(write_pair: Write) -> None:
    from fp16_patch.lab.comparison.figure_style import build_curves
    from fp16_patch.lab.comparison.paper_figure import draw_paper_figure

    folder = write_pair(mismatch__prob_diff_mean=ALL)
    shutil.rmtree(folder / "fp16")
    panel = draw_paper_figure(build_curves(model_of(folder)), window=5).axes[1]
    assert panel.get_xlabel() == f"training step\nbf16: {FIVE} (x)"
    assert list(panel.texts) == []


def test_repeated_runs_count_rewards_that_are_not_finite(write_pair: Write) -> None:
    first = write_pair(name="first", critic__score__mean=[0.5, NAN, 0.5, 0.5, 0.5])
    repeats = {row.arm: (row.runs, row.not_finite) for row in model_of(first, write_pair(name="second")).repeats}
    assert repeats == {"bf16": (2, 1), "fp16": (2, 0)}
