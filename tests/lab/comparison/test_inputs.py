# SPDX-License-Identifier: Apache-2.0
"""Check which runs a comparison accepts, with which settings, and how it refuses others."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import raises_code

from fp16_patch.cli import main
from fp16_patch.lab.comparison.compare import compare
from fp16_patch.lab.folder_lock import exclusive_lock

pytest.importorskip("matplotlib")

Write = Callable[..., Path]
LR = "actor_rollout_ref.actor.optim.lr"


@pytest.fixture
def write(write_run: Write, rises: Any, tmp_path: Path) -> Write:
    """A short run of the paper's recipe in a folder of that name."""

    def write(name: str, *overrides: str, arms: tuple[str, ...] = ("bf16", "fp16"), **chosen: Any) -> Path:
        steps = dict.fromkeys(arms, 40)
        return write_run(
            tmp_path / name, "sanity-grpo", dict.fromkeys(arms, rises), steps, overrides=overrides, **chosen
        )

    return write


def quiet(*sources: Path | str, **chosen: Any) -> dict[str, Any]:
    return compare(*sources, say=lambda _: None, **chosen)


def exported(run: Path, arm: str, to: Path) -> Path:
    """An arm's metrics as wandb's history in a CSV file."""
    rows = [json.loads(line) for line in (run / arm / "metrics.jsonl").read_text().splitlines()]
    names = list(dict.fromkeys(name for row in rows for name in row["data"]))
    with to.open("w", newline="") as file:
        lines = csv.DictWriter(file, ["_step", *names])
        lines.writeheader()
        lines.writerows({"_step": row["step"], **row["data"]} for row in rows)
    return to


def test_imported_logs_report_the_same_as_the_run(write: Write, tmp_path: Path) -> None:
    run = write("run")
    own = quiet(run)
    csv_file = exported(run, "bf16", tmp_path / "bf16.csv")
    out = tmp_path / "out"
    main(
        ["recipes", "compare", f"fp16={run / 'fp16'}", f"bf16={csv_file}", "--recipe", "sanity-grpo", "--out", str(out)]
    )
    report = json.loads((out / "report.json").read_text())
    assert list(report["arms"]) == ["bf16", "fp16"]
    for name, arm in report["arms"].items():
        assert arm["series"] == own["arms"][name]["series"]
        assert arm["status"] == "imported"
    for key in ("headline", "to_reward", "published", "expected"):
        assert report[key] == own[key], key
    assert report["notes"][0].startswith(f"bf16 is read from {csv_file}: its settings")


def test_merges_two_files_of_one_arm(write: Write, tmp_path: Path) -> None:
    run = write("run")
    whole = exported(run, "fp16", tmp_path / "all.csv").read_text().splitlines()
    header = whole[0].split(",")
    parts = []
    for names in (["_step", "critic/score/mean"], ["_step", "actor/grad_norm"]):
        columns = [header.index(name) for name in names]
        part = tmp_path / f"{len(parts)}.csv"
        part.write_text("\n".join(",".join(line.split(",")[i] for i in columns) for line in whole) + "\n")
        parts.append(f"fp16={part}")
    report = quiet(*parts, recipe="sanity-grpo", out=tmp_path / "out")
    assert list(report["arms"]) == ["fp16"]
    assert report["arms"]["fp16"]["mean"]["grad_norm"] == pytest.approx(0.2)
    assert report["arms"]["fp16"]["steps"] == 40


def test_run_directory_and_logs_in_one_report(write: Write, tmp_path: Path) -> None:
    run = write("run")
    report = quiet(run, f"fp16={run / 'fp16'}", recipe="sanity-grpo", out=tmp_path / "out")
    assert {label: list(run["arms"]) for label, run in report["runs"].items()} == {
        "run": ["bf16", "fp16"],
        "imported": ["fp16"],
    }
    with raises_code("settings-differ", "run and imported", "sanity-grpo and sanity-gspo"):
        quiet(run, f"fp16={run / 'fp16'}", recipe="sanity-gspo", out=tmp_path / "out")


def test_folder_named_imported_gets_another_label(write: Write, tmp_path: Path) -> None:
    run = write("imported")
    report = quiet(run, f"fp16={run / 'fp16'}", recipe="sanity-grpo", out=tmp_path / "out")
    assert list(report["runs"]) == [str(run), "imported"]


def test_refuses_files_of_two_runs_for_one_arm(write: Write, tmp_path: Path) -> None:
    run = write("run")
    one, other = run / "bf16" / "metrics.jsonl", run / "fp16" / "metrics.jsonl"
    with raises_code("logs-contradict", "bf16: critic/score/mean", "step 1", one, other):
        quiet(f"bf16={one}", f"bf16={other}", recipe="sanity-grpo", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_logs_of_one_run_may_overlap(tmp_path: Path) -> None:
    """TensorBoard rounds to float32, verl's file logger writes NaN as null, and wandb's clock is of a call."""
    logs = {
        "a.jsonl": '{"step": 1, "data": {"critic/score/mean": 0.1, "actor/grad_norm": null}}',
        "b.jsonl": '{"_step": 1, "critic/score/mean": 0.10000000149011612, "actor/grad_norm": "NaN", "_runtime": 1.0}',
        "c.jsonl": '{"_step": 1, "critic/score/mean": 0.1, "_runtime": 2.0}',
    }
    for name, text in logs.items():
        (tmp_path / name).write_text(text + "\n")
    given = [f"fp16={tmp_path / name}" for name in logs]
    assert quiet(*given, recipe="sanity-grpo", out=tmp_path / "out")["arms"]["fp16"]["steps"] == 1
    (tmp_path / "c.jsonl").write_text('{"_step": 1, "actor/grad_norm": 0.5}\n')
    with raises_code("logs-contradict", "actor/grad_norm", "step 1", "None", "a.jsonl", "0.5", "c.jsonl"):
        quiet(*given, recipe="sanity-grpo", out=tmp_path / "out")


def test_refuses_one_run_by_two_paths(write: Write, tmp_path: Path) -> None:
    run = write("run")
    (tmp_path / "link").symlink_to(run)
    for again in (tmp_path / "link", run / ".." / "run"):
        with raises_code("run-given-twice", again, run):
            quiet(run, again, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "recipe", "code", "named"),
    [
        ("fp16={run}/fp16", None, "recipe-not-given", ("fp16", "--recipe")),
        ("fp16={run}/none.csv", None, "recipe-not-given", ("none.csv", "--recipe")),
        ("fp16={run}/none.csv", "sanity-grpo", "log-unreadable", ("none.csv", "next step")),
        ("{run}/none", None, "not-a-run-directory", ("/run/none", "next step")),
        ("fp61={run}/fp16", "sanity-grpo", "unknown-arm", ("'fp61'", "bf16, fp16")),
        (
            "fp16={run}/other.jsonl",
            "sanity-grpo",
            "metric-not-found",
            ("other.jsonl", "loss", "score/mean"),
        ),
        ("fp16={run}/empty.jsonl", "sanity-grpo", "metric-not-found", ("empty.jsonl",)),
        ("{run}", "sanity-grpo", "invalid-arguments", ("--recipe", "--scale")),
        ("{run}/fp16", None, "not-a-run-directory", ("/run/fp16", "next step")),
    ],
)
def test_refuses_what_is_not_a_run(
    write: Write, tmp_path: Path, source: str, recipe: str | None, code: str, named: tuple[str, ...]
) -> None:
    run = write("run")
    (run / "other.jsonl").write_text('{"step": 1, "data": {"loss": 0.1}}\n')
    (run / "empty.jsonl").write_text("")
    with raises_code(code, *named):
        quiet(source.format(run=run), recipe=recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arms_with_other_settings_are_refused_or_noted(write: Write) -> None:
    run = write("run")
    other = write("other", f"{LR}=2e-6", arms=("fp16",))
    shutil.rmtree(run / "fp16")
    shutil.move(other / "fp16", run / "fp16")
    with raises_code("settings-differ") as refused:
        quiet(run)
    assert f"  bf16 and fp16: {LR}: 1e-06 and 2e-6" in refused.value.what.splitlines()
    assert len(refused.value.what.splitlines()) == 2, "one line for what differs"
    assert not (run / "report.json").exists()
    report = quiet(run, allow_different=True)
    assert f"settings differ: bf16 and fp16: {LR}: 1e-06 and 2e-6" in report["notes"]
    assert f"{LR}: 1e-06 and 2e-6" in (run / "report.html").read_text()


def test_runs_may_differ_only_in_seeds_and_folders(write: Write, tmp_path: Path) -> None:
    one, again, other = write("one"), write("again", "data.seed=7", seed=1), write("other", f"{LR}=2e-6")
    moved = shutil.move(again, tmp_path / "moved")
    report = quiet(one, moved, out=tmp_path / "out")
    assert report["differences"] == []
    (bf16, fp16) = report["repeats"]
    assert (bf16["arm"], fp16["arm"], fp16["runs"]) == ("bf16", "fp16", 2)
    finals = [run["arms"]["fp16"]["series"]["reward_smoothed"][-1] for run in report["runs"].values()]
    assert (fp16["lowest"], fp16["mean"], fp16["highest"]) == (min(finals), sum(finals) / 2, max(finals))
    with raises_code("settings-differ") as refused:
        quiet(one, other, out=tmp_path / "out")
    assert [f"  one and other: {arm}: {LR}: 1e-06 and 2e-6" for arm in ("bf16", "fp16")] == (
        refused.value.what.splitlines()[1:]
    )
    report = quiet(one, other, out=tmp_path / "out", allow_different=True)
    assert len(report["differences"]) == 2
    assert "settings differ: one and other" in (tmp_path / "out" / "report.html").read_text()


def test_refuses_runs_of_different_recipes(write: Write, write_run: Write, rises: Any, tmp_path: Path) -> None:
    gspo = write_run(tmp_path / "gspo", "sanity-gspo", {"fp16": rises}, {"fp16": 40})
    with raises_code("settings-differ", "sanity-grpo and sanity-gspo"):
        quiet(write("grpo"), gspo, out=tmp_path / "out")


def test_compares_hyperparameters_across_frameworks(write: Write, tmp_path: Path) -> None:
    verl, openrlhf = write("one"), write("two", framework="openrlhf")
    assert quiet(verl, openrlhf, out=tmp_path / "out")["differences"] == []
    kept = openrlhf / "recipe.yaml"
    kept.write_text(
        kept.read_text().replace("learning_rate:\n    value: 1.0e-06", "learning_rate:\n    value: 2.0e-06")
    )
    with raises_code("settings-differ", "verl and openrlhf: learning_rate: 1e-06 and 2e-06"):
        quiet(verl, openrlhf, out=tmp_path / "out")


def test_arms_may_differ_as_their_recipe_varies(write_run: Write, rises: Any, tmp_path: Path) -> None:
    """Figure 3: another algorithm and other hyperparameters in each arm."""
    arms = ("bf16", "bf16-token-tis", "bf16-gspo", "fp16")
    run = write_run(tmp_path / "run", "figure-3-five-ways", dict.fromkeys(arms, rises), dict.fromkeys(arms, 40))
    assert [note for note in quiet(run)["notes"] if "settings differ" in note] == []


def test_unfinished_run_is_drawn_and_noted(write: Write) -> None:
    """Killed with its launcher while writing a line: recipe, command and log exist, but no result."""
    run = write("run")
    (run / "fp16" / "result.json").unlink()
    shutil.rmtree(run / "bf16")
    with (run / "fp16" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "data": {"critic')
    report = quiet(run)
    assert report["arms"]["fp16"]["steps"] == 40
    assert "bf16 has not been run" in report["notes"]
    assert "fp16 has no result (it was killed, or runs on another machine) after 40 steps" in report["notes"]
    assert {row["verdict"] for row in report["published"]} <= {"no data", "not reached", "unknown"}
    assert (run / "figure.png").stat().st_size > 10_000


def test_just_started_arm_is_running(write: Write) -> None:
    """It logs its first step after minutes. The launcher has saved its command and holds the lock."""
    run, said = write("run"), list[str]()
    for name in ("result.json", "metrics.jsonl"):
        (run / "fp16" / name).unlink()
    with exclusive_lock(run):
        report = compare(run, say=said.append)
    assert (report["arms"]["fp16"]["status"], report["arms"]["fp16"]["steps"]) == ("running", 0)
    assert [note for note in report["notes"] if "fp16" in note] == ["fp16 still runs after 0 steps"]
    (row,) = (line.split() for line in "\n".join(said).splitlines() if "training steps to reward" in line)
    assert row[-2:] == ["-", "-"], "an arm without a step has not missed the reward"
    assert "<td>not reached</td>" not in (run / "report.html").read_text()
    assert quiet(run)["arms"]["fp16"]["status"] == "unfinished", "killed: nobody holds the folder any more"


@pytest.mark.parametrize(
    "text", ["", '{"status": "compl', "[]", "{}", '{"status": 5}', '{"status": "x", "seconds": "y"}']
)
def test_unreadable_result_is_noted(write: Write, text: str) -> None:
    run = write("run", arms=("fp16",))
    (run / "fp16" / "result.json").write_text(text)
    report = quiet(run)
    assert report["arms"]["fp16"]["status"] == "unreadable"
    assert "fp16 has a result.json that cannot be read after 40 steps" in report["notes"]


@pytest.mark.parametrize("text", ["", "a: [", "name: x\n"])
def test_damaged_recipe_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with raises_code("run-directory-damaged", tmp_path, "recipe.yaml"):
        quiet(tmp_path)


@pytest.mark.parametrize("option", ["--smooth=0", "--smooth=-3", "--smooth=x", "--reward=nan", "--reward=x"])
def test_refuses_bad_window_and_reward(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "compare", str(tmp_path), option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err
