# SPDX-License-Identifier: Apache-2.0
"""What a run could not write or read is refused before it starts; a setting without effect is not silent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from raising import check_error, raises_code

from fp16_patch import envs
from fp16_patch.files import write_atomically
from fp16_patch.frameworks.openrlhf import entry
from fp16_patch.precision import LossScaling, Precision
from fp16_patch.precision.start_checks import environment_problems, report_path_problems


@pytest.mark.parametrize(
    "value",
    ["/", "", " ", ".", "..", "{tmp}", "{tmp}/", "/proc/x.json", "/dev/null", "x" * 300, "{tmp}/file/x", ["a"], 3],
)
def test_a_report_path_that_cannot_be_written_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "file").touch()
    given = value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
    (error,) = report_path_problems(given)
    check_error(error, "value-not-allowed", f"fp16_patch.report_path={given!r}: ")
    assert os.listdir(tmp_path) == ["file"]


def test_a_report_path_that_can_be_written_stands(tmp_path: Path) -> None:
    (tmp_path / "old.json").touch()
    for value in (None, str(tmp_path / "old.json"), str(tmp_path / "a" / "b" / "new.json"), "report.json"):
        assert not list(report_path_problems(value))
    assert os.listdir(tmp_path) == ["old.json"]


@pytest.mark.parametrize("path", ["/", "."])
def test_a_folder_in_place_of_a_file_is_one_error(tmp_path: Path, path: str) -> None:
    with raises_code("write-failed", path, "next step: give the path of a file"):
        write_atomically(path, "text")
    with raises_code("write-failed", tmp_path, "next step: give the path of a file"):
        write_atomically(tmp_path, "text")


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        (envs.PRECISION, "garbage", "environment-unreadable"),
        (envs.ROLLOUT_SIGNIFICAND, "abc", "value-not-allowed"),
        (envs.ROLLOUT_SIGNIFICAND, "11", "value-not-allowed"),
        (envs.METRICS, "/nonexistent/x", "value-not-allowed"),
        (envs.METRICS, "/", "value-not-allowed"),
    ],
)
def test_garbage_in_a_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: str
) -> None:
    monkeypatch.setenv(variable, value)
    (error,) = environment_problems()
    check_error(error, code, f"{variable}={value!r}")
    assert str(error) in map(str, entry.environment_problems())


def test_variables_that_can_be_used_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(envs.PRECISION, Precision().to_environment())
    monkeypatch.setenv(envs.ROLLOUT_SIGNIFICAND, "5")
    for path in (str(tmp_path / "x"), "/dev/null"):
        monkeypatch.setenv(envs.METRICS, path)
        assert not list(environment_problems())


def test_a_share_without_mask_is_refused() -> None:
    with raises_code("setting-contradicts", "fp16_patch.rollout_overflow_max_share=0.5", "rollout_overflow=mask"):
        Precision(rollout_overflow_max_share=0.5)


@pytest.mark.parametrize(
    "settings",
    [{"skip_rate_window": 10}, {"skip_rate_window": 100}, {"max_skip_rate": 0.01}, {"max_consecutive_skips": 300}],
)
def test_a_rate_without_effect_gives_a_warning(settings: dict[str, float]) -> None:
    scaling = LossScaling.from_mapping(settings)
    (text,) = Precision(loss_scaling=scaling).warnings()
    assert all(f"{name}=" in text for name in ("max_skip_rate", "skip_rate_window", "max_consecutive_skips"))
    assert ("no rate stops" in text) == (scaling.max_skips_in_window >= scaling.skip_rate_window)


@pytest.mark.parametrize(
    "settings", [{}, {"max_skip_rate": 1}, {"skip_rate_window": 1000}, {"max_consecutive_skips": 3}]
)
def test_a_rate_with_effect_gives_none(settings: dict[str, float]) -> None:
    assert not Precision(loss_scaling=LossScaling.from_mapping(settings)).warnings()
