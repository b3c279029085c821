# SPDX-License-Identifier: Apache-2.0
"""A recipe and a trainer to launch in tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TEXT = """
name: tiny
title: a recipe for tests
reproduces: {what: nothing, where: nowhere, source: invented}
model: {path: some/model}
data: {train: train.parquet, val: val.parquet}
algorithm: {name: GRPO}
hardware: {ranks: 1, timeout_minutes: 1}
arms:
  bf16: {precision: bf16}
  fp16: {precision: fp16}
expected:
  - {metric: headline.prob_diff_ratio, at_least: 6, source: invented}
verl:
  overrides:
    trainer.total_training_steps: 4
"""
OPENRLHF = """\
openrlhf:
  arguments:
    data.max_samples: 8
    rollout.batch_size: 2
    ds.zero_stage: 2
"""


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe; each ``(old, new)`` pair edits the default text."""

    def write(*edits: tuple[str, str]) -> Path:
        text = TEXT
        for old, new in edits:
            assert old in text, f"{old!r} is not in the recipe that tests edit"
            text = text.replace(old, new)
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def openrlhf() -> str:
    """The section that makes the recipe one for OpenRLHF."""
    return OPENRLHF


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module name of the stand-in trainer, importable in subprocesses."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return "stand_in_trainer"
