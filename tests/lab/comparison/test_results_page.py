# SPDX-License-Identifier: Apache-2.0
"""Check docs/results-toy.md: its figure is drawn from the recorded runs. Generated documents check its tables."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fp16_patch.lab.logs.series import read_series

pytest.importorskip("matplotlib")
SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def test_the_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import toy_experiment_figure

    toy_experiment_figure.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", ["toy_experiment.py", "recipes_toy.py"])
def test_a_script_starts(script: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, "--help"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a completed run whose third of four steps logged NaN for the mismatch, the gradient norm and a share."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    folder = tmp_path / "fp16"
    folder.mkdir()
    lines = []
    for step in range(4):
        finite = step != 2
        data = {
            "critic/score/mean": 0.25 * step,
            "mismatch/prob_diff_mean": 1e-3 if finite else math.nan,
            "mismatch/k3_kl": 1e-6 if finite else None,  # verl's logger writes NaN as null
            "actor/grad_norm": 1.0 if finite else math.inf,
            "actor/rollout_corr/rollout_is_eff_sample_size": 0.5 if finite else None,
            "response_length/mean": 10.0,
        }
        lines.append(json.dumps({"step": step + 1, "data": data}))
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    result = {"seconds": 60.0, "started": "2026-01-01T00:00:00", "versions": {}}
    series = read_series(folder / "metrics.jsonl")
    facts = {"name": "fp16", "status": "completed", "series": series, "result": result}
    return SimpleNamespace(**facts, skipped_updates=0, precision_report=None)


def test_a_toy_run_records_nan_as_nan(run: Any) -> None:
    import recipes_toy

    record = json.loads(json.dumps(recipes_toy.record(recipes_toy.every_recipe()[0], "verl", run), allow_nan=False))
    assert record["prob_diff_mean"] == [0.001, 0.001, "NaN", 0.001]
    assert record["grad_norm"] == [1, 1, "NaN", 1]
    assert record["non_finite"] == {"prob_diff_mean": 1, "grad_norm": 1}
    assert "0.001 0.001 NaN 0.001" in recipes_toy.numbers(record)


def test_an_experiment_counts_what_is_not_finite_beside_the_mean_of_the_rest(run: Any, tmp_path: Path) -> None:
    import toy_experiment
    from toy_experiment_page import HEADER, _row
    from toy_experiment_records import token_mismatch

    measured = json.loads(json.dumps(toy_experiment.measured(run, tmp_path), allow_nan=False))
    assert measured["k3_kl"] == [1e-6, 1e-6, "NaN", 1e-6]
    assert measured["non_finite"] == dict.fromkeys(("effective_samples", "prob_diff_mean", "k3_kl", "grad_norm"), 1)
    assert (measured["effective_samples"], token_mismatch(measured)) == (0.5, 0.001)
    measured |= {"recipe": "dose-response", "arm": "fp16", "seed": 0, "asked": 4, "algorithm": "GRPO"}
    row = dict(zip(HEADER, _row([measured, measured | {"seed": 1, "non_finite": {}}]), strict=True))
    assert row["abs(pi - mu)"].endswith("1.00e-03 \u00b10.00e+00, not finite in 1 of 8 steps")
    assert row["effective samples"] == "0.50, not finite in 1 of 8 steps"
    assert "not finite" not in row["last epoch"]


def test_the_figure_names_an_arm_that_logged_nan(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_experiment_figure as figure
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    record = {"recipe": "dose-response", "algorithm": "GRPO", "world": "toy", "answer_tokens": 10.0}
    record |= {"arm": "bits-8", "policy_accuracy": 0.9, "prob_diff_mean": [1e-3, "NaN"], "non_finite": {"k3_kl": 1}}
    spoilt = record | {"arm": "bits-4", "prob_diff_mean": ["NaN", "NaN"]}
    figure._points(axes, "verl", [record, spoilt], [record, spoilt], figure.token_mismatch)
    assert [text.get_text() for text in axes.texts] == ["8 (NaN in some steps)"]
    assert "dose-response bits-4: no finite mismatch" in axes.get_legend_handles_labels()[1]


def test_a_run_without_a_framework_is_counted_too(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import toy_experiment_records as records

    line = {"recipe": "dose-response", "bits": 8, "seed": 0, "steps": 3, "policy_accuracy": 0.5, "seconds": 1}
    line |= {name: [0.5, "NaN", 0.5] for name in ("reward", "prob_diff_mean", "k3_kl", "grad_norm", "answer_tokens")}
    (tmp_path / "plain.jsonl").write_text(json.dumps(line))
    monkeypatch.setattr(records, "PLAIN", tmp_path / "plain.jsonl")
    (record,) = records.read_plain()
    assert record["non_finite"]["k3_kl"] == record["non_finite"]["answer_tokens"] == 1
    assert (record["answer_tokens"], records.accuracy(record)) == (0.5, 0.5)
