# SPDX-License-Identifier: Apache-2.0
"""Read logs of other runs: TensorBoard, wandb exports, JSON lines."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from raising import raises_code

from fp16_patch.lab.logs.readers import read_log
from fp16_patch.lab.logs.series import Series, build_series


def read(path: Path) -> Series:
    return build_series(read_log(path))


def text(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_reads_verl_file_logger(tmp_path: Path) -> None:
    file = text(
        tmp_path / "run.jsonl",
        '{"step": 0, "data": {"val-core/aime_2024/acc/mean@32": 0.2, "val-core/aime_2024/acc/best@32/mean": 0.5}}',
        '{"step": 1, "data": {"critic/score/mean": 0.5, "actor/grad_norm": null, "response_length/mean": 30.0, '
        '"prompt_length/mean": 10.0, "perf/total_num_tokens": 640, "training/rollout_probs_diff_mean": 1e-3}}',
        '{"step": 2, "data": {"critic/score/mean": 0.6, "actor/grad_norm": 0.1, "response_length/mean": 30.0}}',
        '{"step": 3, "data": {"critic/sc',
    )
    series = read(file)
    assert (series.steps, series.known("reward"), series.unreadable_lines) == ([1, 2], [0.5, 0.6], 1)
    assert series.non_finite_steps("grad_norm") == [1]
    assert series.evaluation == {"val-core/aime_2024/acc/mean@32": ([0], [0.2])}
    assert series.values["samples"] == [16.0, None]
    assert series.values["response_tokens"] == [480.0, None]
    assert series.values["prob_diff_mean"] == [1e-3, None]


def test_reads_wandb_history_of_both_frameworks(tmp_path: Path) -> None:
    """OpenRLHF's step is not wandb's, which counts calls; what was not logged at a call is null."""
    verl = text(
        tmp_path / "verl.jsonl",
        '{"_step": 1, "critic/score/mean": 0.5, "actor/grad_norm": "NaN", "val-core/x/acc/mean@8": null}',
        '{"_step": 2, "critic/score/mean": 0.6, "actor/grad_norm": 0.2}',
    )
    assert (read(verl).steps, read(verl).non_finite_steps("grad_norm"), read(verl).evaluation) == ([1, 2], [1], {})
    openrlhf = text(
        tmp_path / "openrlhf.jsonl",
        '{"_step": 0, "train/global_step": 1, "train/rollout/reward_mean": 0.5, "train/rollout/num_samples": 128, '
        '"train/rollout/response_length_mean": 20.0, "train/actor_grad_norm": 0.3}',
        '{"_step": 1, "eval/global_step": 1, "eval/eval_aime_pass1": 0.25, "train/global_step": null}',
        '{"_step": 2, "train/global_step": 2, "train/rollout/reward_mean": 0.7}',
    )
    series = read(openrlhf)
    assert (series.steps, series.known("reward"), series.known("grad_norm")) == ([1, 2], [0.5, 0.7], [0.3])
    assert series.values["response_tokens"] == [2560.0, None]
    assert series.evaluation == {"eval_aime_pass1": ([1], [0.25])}


def test_reads_charts_exported_from_wandb(tmp_path: Path) -> None:
    file = text(
        tmp_path / "chart.csv",
        '"Step","fp16 - 2 - critic/score/mean","fp16 - 2 - critic/score/mean__MIN","fp16 - 2 - critic/score/mean__MAX"',
        '"1","0.5","0.5","0.5"',
        '"2","","",""',
        '"3","0.7","0.7","0.7"',
    )
    assert (read(file).steps, read(file).known("reward")) == ([1, 3], [0.5, 0.7])


def test_reads_history_as_csv(tmp_path: Path) -> None:
    file = text(
        tmp_path / "history.csv",
        ",_step,_timestamp,critic/score/mean,actor/grad_norm,note",
        "0,1,1.7e9,0.5,NaN,warm-up",
        "1,2,1.7e9,0.6,0.25,",
    )
    series = read(file)
    assert (series.steps, series.known("reward"), series.known("grad_norm")) == ([1, 2], [0.5, 0.6], [0.25])
    assert series.non_finite_steps("grad_norm") == [1]


def test_refuses_chart_of_several_runs(tmp_path: Path) -> None:
    file = text(tmp_path / "chart.csv", "Step,bf16 - critic/score/mean,fp16 - critic/score/mean", "1,0.5,0.6")
    with raises_code("log-of-several-runs", "bf16, fp16", "next step"):
        read(file)


def test_reads_tensorboard_events(tmp_path: Path) -> None:
    """Written by the writer that verl and OpenRLHF use, in two files as after a restart."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    for steps in (range(1, 4), range(3, 6)):
        with tensorboard.SummaryWriter(str(tmp_path / "run"), filename_suffix=f".{steps.start}") as writer:
            for step in steps:
                writer.add_scalar("train/rollout/reward_mean", 0.1 * step, step)
                writer.add_scalar("train/actor_grad_norm", math.nan if step == 2 else 0.5, step)
                writer.add_text("train/generated_samples", "1+1=2", step)
    for path in (tmp_path, tmp_path / "run"):
        series = read(path)
        assert series.steps == [1, 2, 3, 4, 5]
        assert series.known("reward") == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
        assert series.non_finite_steps("grad_norm") == [2]


def test_refuses_events_of_several_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.out.tfevents.1.host").write_bytes(b"")
    with raises_code("log-of-several-runs", "a, b", "next step"):
        read_log(tmp_path)


def test_missing_tensorboard_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    for module in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with raises_code("not-installed", "tensorboard", "fp16-patch[lab]"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "missing.csv"),
        ("run.wandb", "x", "run.wandb"),
        ("folder", "", "metrics.jsonl"),
    ],
)
def test_refuses_what_is_not_a_log(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content:
        path.write_text(content)
    elif content == "":
        path.mkdir()
    with raises_code("log-unreadable", message):
        read_log(path)


def test_counts_json_lines_that_are_not_rows(tmp_path: Path) -> None:
    file = text(tmp_path / "odd.jsonl", "[1, 2]", "7", "{}", '{"step": "x", "data": {}}', '{"step": 1, "data": 3}')
    assert (read(file).steps, read(file).unreadable_lines) == ([], 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bin.csv"),
        (b"Step;critic/score/mean\n1;0.5\n", "'Step;critic/score/mean'"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "bin.csv"),
        (b'Step,"' + b"x" * 200_000, "field larger than field limit"),
    ],
    ids=["empty", "semicolons", "binary", "no end"],
)
def test_refuses_broken_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bin.csv").write_bytes(content)
    with raises_code("log-unreadable", "bin.csv", message):
        read_log(tmp_path / "bin.csv")
