# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF's sampling arguments that make mu another distribution."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from raising import check_error, raises_code

from fp16_patch import envs
from fp16_patch.frameworks.openrlhf import entry, refusals
from fp16_patch.precision import Precision
from fp16_patch.rollout_health.sampling_settings import ACCEPT, UNREAD

Arguments = Callable[..., Any]
LEVEL = "algo__advantage__is_correction_level"
ACCEPTS = Precision(allow_truncated_sampling=True)


def accepted(args: Any, precision: Precision) -> dict[str, str]:
    return {found["key"]: found["accepted_by"] for found in refusals.accepted_sampling(args, precision)}


@pytest.mark.parametrize("level", ["token", "seq"])
@pytest.mark.parametrize(("name", "value"), [("top_p", 0.9), ("temperature", 0.0), ("temperature", 0.001)])
def test_refused_where_a_correction_reads_log_probs(arguments: Arguments, level: str, name: str, value: float) -> None:
    args = arguments(**{LEVEL: level, f"rollout__{name}": value})
    (problem,) = refusals.unsupported(args, Precision())
    check_error(problem, "sampling-changed", f"--rollout.{name}={value}", "allowed: ", "next step: ", ACCEPT)
    assert refusals.unsupported(args, ACCEPTS) == []
    assert accepted(args, ACCEPTS) == {f"--rollout.{name}": ACCEPT}


@pytest.mark.parametrize("name", ["rollout__temperature", "eval__temperature"])
def test_another_temperature_is_right_on_both_sides(arguments: Arguments, name: str) -> None:
    """OpenRLHF asks vLLM for processed log-probs, and its trainer divides by the rollout's temperature."""
    args = arguments(**{LEVEL: "token", name: 0.7})
    assert refusals.unsupported(args, Precision()) == []
    assert accepted(args, Precision()) == {}


def test_refused_in_bf16_too(arguments: Arguments) -> None:
    args = arguments(**{LEVEL: "token", "rollout__top_p": 0.9, "ds__param_dtype": "bf16"})
    with raises_code("sampling-changed", "--rollout.top_p=0.9"):
        entry.apply_flag(args, {})


def test_without_a_correction_the_run_warns_and_reports(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    entry.apply_flag(arguments(rollout__top_p=0.9), {})
    (found,) = json.loads(os.environ[envs.RUN_RECORD])["sampling"]
    assert (found["key"], found["value"], found["accepted_by"]) == ("--rollout.top_p", 0.9, UNREAD)
    assert "--rollout.top_p=0.9" in capsys.readouterr().out
