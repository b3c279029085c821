# SPDX-License-Identifier: Apache-2.0
"""The overflow report: which modules an override names, the text, the JSON document."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from diagnosed_models import diagnosis, examined, fp32_of, model, row, total
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from raising import raises_code

from fp16_patch.loss_scaling import LossScaling
from fp16_patch.loss_scaling.diagnosis.advice import fp32_override
from fp16_patch.loss_scaling.diagnosis.module_table import SHOWN
from fp16_patch.loss_scaling.diagnosis.module_trace import ModuleRow
from fp16_patch.loss_scaling.diagnosis.report import as_document, render, save

# Which modules an override names, on rows like a large model's.


LAYER = "model.layers.3"


def test_what_lies_between_two_modules_of_one_is_in_that_one() -> None:
    """Scores and softmax are neither v_proj's nor o_proj's."""
    found = diagnosis(
        row("lm_head", 0),
        row(LAYER, 1),
        row(f"{LAYER}.self_attn.o_proj", 2),
        row(f"{LAYER}.self_attn", 3),
        row(f"{LAYER}.self_attn.v_proj", 4, overflow=True),
        row(f"{LAYER}.self_attn.q_proj", 5, overflow=True),
    )
    assert found.suspects == [f"{LAYER}.self_attn.v_proj"]
    assert fp32_of(found) == f"fp16_patch.fp32_modules=[{LAYER}.self_attn]"


def test_layers_are_not_named_for_what_lies_between_them() -> None:
    found = diagnosis(
        row("model", 0), row("model.layers.4", 1), row("model.layers.4.norm", 2), row(LAYER, 3, overflow=True)
    )
    assert fp32_of(found) == f"fp16_patch.fp32_modules=[{LAYER},model.layers.4.norm]"


def test_a_module_in_fp32_already_is_not_named() -> None:
    found = diagnosis(row("lm_head", 0), row("model.norm", 1, overflow=True, dtype="float32"))
    assert fp32_of(found) == "fp16_patch.fp32_modules=[lm_head]"
    assert "65504" not in render(diagnosis(row("lm_head", 0, dtype="float32"))), "FP32 has no such limit"


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{LAYER}.mlp.up.base_layer",
        f"base_model.model.{LAYER}.mlp.up.lora_A.default",
        f"base_model.model.{LAYER}.mlp.up.lora_dropout.default",
        f"pretrained_model.{LAYER}.mlp.up",
    ],
)
def test_names_are_those_that_the_flag_takes(name: str) -> None:
    origin = row(name, 5, overflow=True, forward_overflow=0, activation_nonfinite=0.5)
    assert fp32_of(diagnosis(origin)) == f"fp16_patch.fp32_modules=[{LAYER}.mlp.up]"


NAMES = st.lists(
    st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,6}", fullmatch=True), min_size=1, max_size=4).map(".".join),
    min_size=1,
    max_size=3,
)
WORDS = st.lists(st.sampled_from(["0", "1.5", "true", "null", "Inf", "nan", "1e5", "a.1e5", "inf.x", "_", "0.null"]))


@given(NAMES | WORDS.filter(bool))
def test_hydra_reads_the_names_as_they_are(names: list[str]) -> None:
    (override,) = shlex.split(fp32_override(names))
    assert OverridesParser.create().parse_override(override).value() == names


def test_usual_names_need_no_quotes() -> None:
    assert fp32_override([f"{LAYER}.mlp", "lm_head"]) == f"fp16_patch.fp32_modules=[{LAYER}.mlp,lm_head]"


def test_the_overrides_are_known_to_the_settings() -> None:
    found = examined(model(), skipped=2, init_scale=2.0**20)
    key, _, value = found.advice[0].partition(": ")[2].partition("=")
    assert LossScaling.from_mapping({key.rpartition(".")[2]: float(value)}).init_scale == 32768.0


# The report.


def test_the_text_says_it_all() -> None:
    found = examined(model(head=40, embed=0.01), skipped=4)
    text = render(found)
    lines = text.splitlines()
    assert lines[0] == "fp16_patch overflow report: 4 updates in a row were skipped"
    assert f"found: {found.summary}" in lines
    assert "scale: 65536 -> 32768 after 1 -> 16384 after 2 -> 8192 after 3 -> 4096 after 4" in lines
    assert "4 updates, 4 skipped, 4 consecutive, 0 growths, 4 backoffs" in text
    assert f"torch {torch.__version__}" in text
    table = {line.split()[0]: line for line in lines if line.startswith(("head ", "mlp", "embed "))}
    assert list(table) == ["head", "mlp.down", "mlp", "mlp.up", "embed"], "backward order"
    assert table["head"].split() == ["head", "Linear", "float16", "0.004002", "-", "4096", "-"]
    assert table["mlp.down"].split() == ["mlp.down", "Linear", "float16", "0.0001", "-", "-", "100", "%", "<-", "first"]
    assert [line for line in lines if line.startswith("headroom: largest finite gradient ")]
    assert [line.strip() for line in lines if line.startswith("  ")][-3:] == [
        f"{number}. {line}" for number, line in enumerate(found.advice, 1)
    ]


def test_a_long_history_is_one_short_line() -> None:
    history = [(updates, 2.0 ** (24 - updates)) for updates in range(20)]
    line = next(line for line in render(diagnosis(history=history)).splitlines() if line.startswith("scale: "))
    assert line == (
        "scale: 16777216 -> 8388608 after 1 -> 4194304 after 2 -> (13 more) "
        "-> 256 after 16 -> 128 after 17 -> 64 after 18 -> 32 after 19"
    )


def test_scales_below_one_are_written_out() -> None:
    found = diagnosis(row("head", 0, overflow=True), loss_scale=1.0, settings=LossScaling(min_scale=2.0**-24).as_dict())
    assert "init_scale=0.125" in found.advice[0]


def test_a_large_model_s_table_is_short() -> None:
    rows = [row(f"layers.{at}", at, overflow=at >= 50) for at in range(100)]
    lines = [line for line in render(diagnosis(*rows)).splitlines() if line.startswith("layers.")]
    assert [line.split()[0] for line in lines] == [f"layers.{at}" for at in range(44, 44 + SHOWN)]
    assert [line.split()[0] for line in lines if "<- first" in line] == ["layers.50"]
    finite = render(diagnosis(*[row(f"layers.{at}", at) for at in range(100)]))
    lines = [line for line in finite.splitlines() if line.startswith("layers.")]
    assert [line.split()[0] for line in lines] == [f"layers.{at}" for at in range(99, 99 - SHOWN, -1)], "largest first"
    assert "(80 more modules in the JSON file)" in finite


def test_a_report_without_modules() -> None:
    assert "nothing overflows" in render(diagnosis())


CASES = {
    "forward": lambda: examined(model(embed=1e6)),
    "loss": lambda: examined(model(), lambda output: total(output) * math.nan),
    "backward": lambda: examined(model(head=40, embed=0.01)),
    "nothing": lambda: examined(model()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_document_is_json_without_inf_or_nan(case: str, tmp_path: Path) -> None:
    found = CASES[case]()
    assert found.case == case
    path = save(found, tmp_path / "reports")
    assert path == tmp_path / "reports" / "overflow_report.txt"
    assert path.read_text() == render(found) + "\n"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(path.with_suffix(".json").read_text(), parse_constant=refuse)
    assert read == as_document(found)
    assert (read["case"], read["suspects"], read["advice"]) == (found.case, found.suspects, found.advice)
    assert read["history"][-1] == [4, 4096.0]
    assert [ModuleRow(**fields) for fields in read["modules"]] == found.rows


def test_reports_are_replaced_and_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(diagnosis(row("head", 0)), tmp_path, "trace_of_update_2_actor")
    first = (tmp_path / "trace_of_update_2_actor.json").read_text()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with raises_code("write-failed", "disk full"):
            save(diagnosis(), tmp_path, "trace_of_update_2_actor")
    assert (tmp_path / "trace_of_update_2_actor.json").read_text() == first
    save(diagnosis(), tmp_path, "trace_of_update_2_actor")
    assert json.loads((tmp_path / "trace_of_update_2_actor.json").read_text())["modules"] == []
