# SPDX-License-Identifier: Apache-2.0
"""The precision report: many processes into one table, the table against the flag, and its file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from raising import check_error

from fp16_patch.patching import Ledger, LedgerEntry
from fp16_patch.precision import Precision
from fp16_patch.report.precision_report import as_document, expected, merge_roles, precision_violations, publish, render
from fp16_patch.report.process_report import this_process

FP16, BF16 = Precision("fp16", "fp16"), Precision("bf16", "bf16")

ACTOR = {
    "master_weights": "float32",
    "compute": "float16",
    "gradient_reduction": "float32",
    "gradient_accumulation": "float32",
    "optimizer_state": "created at the first update",
    "loss_scale": "65536",
    "logits": "float16",
}
ROLLOUT = {"weights": "float16", "compute": "float16", "kv_cache": "float16"}


def report(name: str, **roles: dict[str, str]) -> dict[str, Any]:
    return this_process(name, Ledger(), roles)


def findings(roles: dict[str, dict[str, str]], precision: Precision) -> list[str]:
    return [error.what.removeprefix("precision report: ") for error in precision_violations(roles, precision)]


def test_a_process_report_is_json_and_carries_its_ledger() -> None:
    ledger = Ledger(host="node-1", pid=7)
    ledger.record(LedgerEntry("a-patch", "module:name", "applied", "0.9.1", "", "trainer rank"))
    made = this_process("trainer rank 0", ledger, {"actor": ACTOR})
    assert json.loads(json.dumps(made)) == made
    assert (made["process"], made["host"], made["pid"]) == ("trainer rank 0", "node-1", 7)
    assert [entry["name"] for entry in made["ledger"]] == ["a-patch"]
    assert made["roles"] == {"actor": ACTOR}


def test_processes_that_agree_make_one_column() -> None:
    ranks = [report("trainer rank 0", actor=ACTOR), report("trainer rank 1", actor=ACTOR)]
    assert merge_roles([*ranks, report("vLLM worker 0", rollout=ROLLOUT)]) == {"actor": ACTOR, "rollout": ROLLOUT}


def test_processes_that_disagree_have_every_value_listed_and_violate_the_precision() -> None:
    ranks = [report("0", actor=ACTOR), report("1", actor=ACTOR | {"compute": "bfloat16"}), report("2", actor=ACTOR)]
    merged = merge_roles(ranks)
    assert merged["actor"]["compute"] == "float16 | bfloat16"
    assert findings(merged, FP16) == ["actor compute is float16 | bfloat16"]


def test_a_row_that_only_one_process_has_is_kept() -> None:
    merged = merge_roles([report("0", actor={"compute": "float16"}), report("1", actor={"gradients": "float32"})])
    assert merged == {"actor": {"compute": "float16", "gradients": "float32"}}


def test_processes_without_roles_add_nothing() -> None:
    assert merge_roles([report("task runner")]) == {}


@pytest.mark.parametrize(
    ("role", "row", "value"),
    [
        ("actor", "master_weights", "float16"),
        ("actor", "compute", "bfloat16"),
        ("actor", "gradient_reduction", "float16"),
        ("actor", "gradient_accumulation", "float16"),
        ("actor", "optimizer_state", "bfloat16"),
        ("actor", "gradients", "float16"),
        ("critic", "gradient_reduction", "bfloat16"),
        ("reference", "master_weights", "bfloat16"),
        ("reference", "compute", "bfloat16"),
        ("rollout", "weights", "float16 (99.2%), bfloat16 (0.8%)"),
        ("rollout", "compute", "bfloat16"),
        ("rollout", "kv_cache", "fp8_e4m3"),
        ("reward model", "weights", "bfloat16"),
        ("teacher", "weights", "bfloat16"),
    ],
)
def test_each_promised_row_is_checked(role: str, row: str, value: str) -> None:
    (error,) = precision_violations({role: {row: value}}, FP16)
    check_error(error, "precision-violated", f"{role} {row.replace('_', ' ')}", value)
    assert error.allowed == " or ".join(expected(FP16, role)[row])
    assert error.next_step


def test_a_run_that_holds_its_promises() -> None:
    trained = ACTOR | {"optimizer_state": "float32", "gradients": "float32"}
    reference = {"master_weights": "float32", "compute": "float16"}
    roles = {"actor": trained, "critic": ACTOR, "reference": reference, "rollout": ROLLOUT}
    assert findings(roles, FP16) == []
    assert findings({"rollout": ROLLOUT | {"kv_cache": "not allocated"}}, FP16) == []


def test_rows_that_nothing_promises_are_reported_only() -> None:
    assert findings({"actor": ACTOR | {"logits": "float64", "anything": "else"}}, FP16) == []


def test_a_reference_is_promised_nothing_about_training() -> None:
    assert set(expected(FP16, "reference")) == {"master_weights", "compute"}


def test_each_side_is_held_to_its_own_dtype() -> None:
    one_sided = Precision("bf16", "fp16")
    actor = ACTOR | {"compute": "bfloat16", "loss_scale": "none"}
    assert findings({"actor": actor, "rollout": ROLLOUT}, one_sided) == []
    assert findings({"actor": actor, "rollout": ROLLOUT}, BF16) == [
        "rollout weights is float16",
        "rollout compute is float16",
        "rollout kv cache is float16",
    ]


def test_fp16_training_needs_a_loss_scale_and_nothing_else_may_have_one() -> None:
    assert findings({"actor": ACTOR | {"loss_scale": "none"}}, FP16) == ["actor loss scale is none"]
    assert findings({"actor": ACTOR | {"compute": "bfloat16"}}, BF16) == ["actor loss scale is 65536"]


def test_ranks_must_agree_on_the_loss_scale() -> None:
    (problem,) = precision_violations({"actor": {"loss_scale": "65536 | 32768"}}, Precision())
    assert "65536 | 32768" in str(problem)
    assert "the same on every rank" in str(problem)


def test_rollout_parts_may_stay_wider_but_never_become_another_half() -> None:
    held = {"weights": "float16 (99.9%), float32 (0.1%)", "kv_cache": "float16 (90.0%), float32 (10.0%)"}
    assert precision_violations({"rollout": held}, Precision()) == []
    for value in ("float16 (99.9%), bfloat16 (0.1%)", "float32", "float8_e4m3fn", "float16 (50.0%), int8 (50.0%)"):
        assert len(precision_violations({"rollout": {"weights": value}}, Precision())) == 1, value
    assert len(precision_violations({"actor": {"gradients": "float16, float32"}}, Precision())) == 1


def test_every_broken_promise_is_found_at_once() -> None:
    roles = {"actor": ACTOR | {"master_weights": "float16"}, "rollout": ROLLOUT | {"kv_cache": "bfloat16"}}
    assert findings(roles, FP16) == ["actor master weights is float16", "rollout kv cache is bfloat16"]


def test_the_table_has_a_column_a_role_in_the_order_of_the_loop() -> None:
    roles = {"teacher": {"weights": "float16"}, "rollout": ROLLOUT, "actor": ACTOR}
    lines = render(Precision("bf16", "fp16"), roles).splitlines()
    assert lines[0] == "fp16_patch precision report: bf16 train, fp16 rollout"
    assert lines[2].split() == ["actor", "rollout", "teacher"]
    rows = [re.split(" {2,}", line) for line in lines[3:]]
    assert ["optimizer state", "created at the first update", "-", "-"] in rows
    assert ["weights", "-", "float16", "float16"] in rows
    assert all(line == line.rstrip() for line in lines)


def test_the_document_is_json_and_says_what_ran() -> None:
    change = {"key": "actor_rollout_ref.rollout.dtype", "before": "bfloat16", "after": "float16"}
    process = report("trainer rank 0", actor=ACTOR)
    document = as_document(FP16, {"actor": ACTOR}, [process], [change])
    assert document["sampling"] == []
    assert json.loads(json.dumps(document)) == document
    assert document["flag"] == FP16.as_mapping()
    assert document["config_changes"] == [change]
    assert document["processes"] == [process]
    assert {"torch", "transformers"} <= set(document["versions"])


def test_publishing_replaces_the_file_and_prints_the_first_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "folder" / "precision_report.json"
    for when in ("before the first update", "after the first update"):
        publish(FP16, [report("0", actor=ACTOR)], [], str(path), when)
    assert json.loads(path.read_text())["when"] == "after the first update"
    assert os.listdir(path.parent) == [path.name]
    assert capsys.readouterr().out.count("fp16_patch precision report") == 1


def test_accepted_sampling_is_in_the_report_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, accepted_by = tmp_path / "precision_report.json", "fp16_patch.allow_truncated_sampling=true"
    accepted = [
        {"key": "rollout.top_p", "value": 0.9, "why": "cut", "accepted_by": accepted_by},
        {"key": "rollout.top_k", "value": 20, "why": "cut", "accepted_by": accepted_by},
    ]
    publish(FP16, [report("0", actor=ACTOR)], [], str(path), "before the first update", sampling=accepted)
    assert json.loads(path.read_text())["sampling"] == accepted
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sampling")]
    assert line.endswith(f"rollout.top_p=0.9 ({accepted_by}), rollout.top_k=20 ({accepted_by})")
    publish(FP16, [report("0", actor=ACTOR)], [], str(path), "before the first update")
    assert "sampling that changes mu" not in capsys.readouterr().out


def test_overwritten_settings_are_in_the_report_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "precision_report.json"
    before = {"key": "rollout.dtype", "before": "bfloat16", "after": "float16"}
    changes = [{**before, "overwritten": True}, {**before, "key": "fsdp.dtype", "overwritten": False}]
    publish(FP16, [report("0", actor=ACTOR)], changes, str(path), "before the first update")
    assert json.loads(path.read_text())["config_changes"] == changes
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("replaced")]
    assert line.endswith("(fp16_patch.overwrite=true): rollout.dtype=bfloat16 by float16")


def test_a_report_that_cannot_be_written_leaves_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "precision_report.json"
    publish(FP16, [], [], str(path), "before the first update")
    with pytest.raises(TypeError):
        publish(FP16, [], [{"after": object()}], str(path), "after the first update")
    assert json.loads(path.read_text())["when"] == "before the first update"
